// Package e2e tests the built command against real firewalls, daemons and clients,
// on hosts of the lab. A file tests what its name says, without _linux_test.go:
//
//	guard           a guard from load to unload; reloads; several clients, profiles and schemes
//	droppolicy      rules with --policy drop
//	loading         load and unload of plain rules: failures, many windows
//	script          the verbs test, load and unload of a script; loads in a container
//	trial           the verbs trial, keep and cancel; killed scripts; rules of older versions
//	parts           profiles that are loaded one after another
//	iptables_parts  the same for iptables, and trials of iptables rules
//	iptables_stages the lists of iptables that hold stages; rules of a clock near 1970
//	install         installed scripts that change firewalls, formats or versions
//	golden          the golden rules of testdata/rules
//	traces          the traces of testdata/traces
//	bypass          attempts to bypass a guard
//	scan            the ports that a scanner sees
//	coverage        other paths to a guarded port
//	trust           sources that need no knock
//	status          the verb status of a script
//	secrecy         outputs and files that must not reveal knocks or tokens
//	limits          limits of the rules that SECURITY.md names
//	crowd           many clients, and floods of forged packets
//	traffic         packets for services and for other hosts
//	deploy          deploy and undeploy on hosts that do not boot
//	sshconfig       the lines for ~/.ssh/config, and the file with them
//	deployed        a profile that has changed since it was deployed
//	rotating        rotating sequences, with the kernel's clock
//	token           tokens
//	token_packets   packets that carry tokens
//	refresh         rules that are regenerated and loaded while clients knock
//	knockd          knockd with sequences that repeat or share ports
//	knockd_rounds   the rounds of knocks after which knockd admits a client
//	daemon_script   emit-rules --script for knockd and fwknopd
//	oldnft          old versions of nft
//	handmade        servers and clients that other people have made
//	fwknop_server   fwknopd with emitted rules
//	fwknop_nat      ports that fwknopd forwards
//	fwknop_packets  packets that fwknopd decodes
//	fwknop_import   profile import from fwknop
//	wire            the packets that the client sends
//	programs        scp, git and other programs that use ssh
//	mosh            mosh through a guard of its UDP ports
//	tools           programs that connect without portknock, after knock or a script of sequence
//	messages        errors, hints and exit codes
//	signals         a calling program that gives up, and missing readers
//	stream          the connection that portknock copies
//	fdpass          the connection whose socket portknock passes to ssh
//	resolve         names: servers that do not answer, search domains, getent; the home folder
//	route           a route that is lost for a moment
//
// Other files help the tests: main (builds the command), race (the race detector), rig (a
// server with a guard), session (ssh through portknock) and schedule (a Period so that the
// present is at the right place of its window).
package e2e
