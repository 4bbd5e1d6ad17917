package rules

import (
	"fmt"
	"strings"
)

// nftDaemon returns the document of a daemon's file, with the guard as its body. The
// guard is like that of the format nftables, but does not judge knocks: the daemon
// admits addresses. The daemon's file holds the guard as comments, which sed prints
// for nft, so that an administrator keeps and loads one file.
//
// The command start makes the daemon read the file, and stop ends the daemon. The load
// line runs start first: if the daemon does not start, for example because it lacks
// its interface, the ports are not closed to everybody.
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

// nftOpenElement names the set of admitted addresses, for "nft add" and "nft delete".
func nftOpenElement(g guard, family string) string {
	return fmt.Sprintf("element inet portknock open%s_%s", family, g.ID)
}
