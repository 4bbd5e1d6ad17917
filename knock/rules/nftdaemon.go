package rules

import (
	"fmt"
	"strings"
)

// nftDaemon returns the document of a daemon's file. The guard is like that of the
// format nftables, but does not judge knocks: the daemon admits addresses. A plain file
// holds the guard as comments, which sed prints for nft, so that an administrator keeps
// and loads one file. In a script, each guard has a file for a daemon of its own.
//
// The command start makes the daemon read the file, and stop ends the daemon. The load
// line runs start first: if the daemon does not start, for example because it lacks
// its interface, the ports are not closed to everybody. The function file returns the
// daemon's file for some of the guards.
func nftDaemon(guards []guard, o Options, start, stop string, file func([]guard) string) document {
	d := nftDocument(nftRules{o, false}, guards, `sed -n "s/^#: //p" `+quote(o.File)+" | nft ", "-")
	d.load = start + " && " + d.load
	d.unload = stop + "; " + d.unload
	d.notes = []string{nftVersionNote(guards)}
	d.daemons = each(guards, func(g guard) string { return file([]guard{g}) })
	d.body = "\n" + comments("#: ", strings.TrimLeft(d.rules(), "\n")) + file(guards)
	return d
}

// nftOpenElement names the set of admitted addresses, for "nft add" and "nft delete".
func nftOpenElement(g guard, family string) string {
	return fmt.Sprintf("element inet portknock open%s_%s", family, g.ID+g.copy)
}
