// Package e2e tests the built command against real firewalls, daemons and clients,
// on hosts of the lab. The names of its files, without _linux_test.go, say what they
// test:
//
//	guard           a guard's life, reloads, several clients, profiles and schemes
//	droppolicy      rules with --policy drop
//	loading         check, load, trial, keep and undo; failures; many windows
//	golden, traces  the files of testdata/rules and testdata/traces
//	bypass, scan    attacks on a guard, and what a scanner sees
//	secrecy         what must not show knocks or tokens
//	traffic         packets for services and for other hosts
//	windows         rotating sequences by the clock
//	token           tokens; token_packets: which packets count as one
//	refresh         the units that keep rules fresh
//	knockd, oldnft  what is special to knockd, and to old versions of nft
//	handmade        servers and clients that others have made
//	fwknop_server   fwknopd; fwknop_nat: forwarded ports
//	fwknop_packets  packets that fwknopd decodes; fwknop_import: profile import
//	wire            the packets that leave the client
//	programs        scp, git and other programs above ssh
//	messages        what a failure prints, and its exit code
//	signals         a calling program that gives up, and missing readers
//	stream, fdpass  the connection, and one whose socket is handed to ssh
//	resolve, route  name servers that do not answer, and a lost route
//
// The rest helps them: rig (a server with a guard), session (ssh through portknock)
// and schedule (windows in which the present lies where a test wants it).
package e2e
