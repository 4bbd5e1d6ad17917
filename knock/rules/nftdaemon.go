package rules

import (
	"fmt"
	"strings"
)

// A daemon opens a guard like that of the format nftables, but without the knocks.
// It stands in the daemon's own file as comments, which sed prints for nft, so that
// there is one file to keep and to load.

// nftDaemon returns the document of a daemon's file, with the guard as its body.
// Start has the daemon read the file, and stop ends it. A daemon that does not
// start, for want of its interface, is no reason to close the ports to everybody:
// it comes first.
func nftDaemon(guards []guard, o Options, start, stop string) document {
	d := nftDocument(nftRules{guards, o, false}, `sed -n "s/^#: //p" `+quote(o.File)+" | nft ", "-")
	d.load = start + " && " + d.load
	d.undo = stop + "; " + d.undo
	d.notes = []string{
		`"flush ruleset", with which Debian's /etc/nftables.conf begins, removes the
guard and leaves the port open: load again after it, and when the server starts.`,
		nftVersionNote(guards),
	}
	d.body = "\n" + comments("#: ", strings.TrimLeft(d.body, "\n"))
	return d
}

// nftOpening names the set of admitted addresses for "nft add" and its like.
func nftOpenElement(g guard, family string) string {
	return fmt.Sprintf("element inet portknock open%s_%s", family, g.ID)
}
