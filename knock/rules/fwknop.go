package rules

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
)

// fwknopdConf is the file that the load line writes, with the settings that fwknopd
// reads from a file of their own.
const fwknopdConf = "/run/portknock.fwknopd.conf"

// fwknopdPID is the file in which fwknopd keeps its process ID.
const fwknopdPID = "/run/fwknop/fwknopd.pid"

// emitFwknop writes an access.conf. Comments in the same file hold the fwknopd.conf.
// Ports that fwknopd forwards do not need a guard: no packet reaches them without the
// rules that fwknopd makes.
func emitFwknop(guards []guard, o Options) (document, error) {
	if err := checkFwknopd(guards, o); err != nil {
		return document{}, err
	}
	conf := `sed -n "s/^#; //p" ` + quote(o.File) + " >" + fwknopdConf + " && chmod 600 " + fwknopdConf
	args := " -a " + quote(o.File) + " -c " + fwknopdConf
	// An fwknopd that finds nothing to listen at ends without a message, shortly after
	// it has gone into the background. fwknopd -K would also end another program that has
	// the number in an old pid file, but pkill compares the name.
	find := "-x -F " + fwknopdPID + " fwknopd 2>/dev/null"
	start := conf + " && { pkill -HUP " + find + " || { fwknopd" + args + " && sleep 1 && pkill -0 " + find + "; }" +
		` || { echo "fwknopd does not run: its log says why" >&2; false; }; }`
	// The next load must not mistake an fwknopd that is ending for a running one.
	stop := `timeout 5 sh -c "while pkill ` + find + `; do sleep 0.1; done"`
	interfaceNote := textIf(o.Interface == "", `fwknopd listens on one interface, eth0 by default. To choose another one, use
"portknock emit-rules --interface NAME". `) + `load tells a running fwknopd to read
its access.conf again. So this file must be the one that it reads. It keeps its own
fwknopd.conf. unload also stops fwknopd.`
	const acceptNote = `Packets are for IPv4 only; IPv6 addresses are not admitted. fwknopd accepts a packet
whose clock differs by less than 120 s from this server's, and each packet once.`
	file := func(guards []guard) string { return fwknopFile(guards, o) }
	var d document
	if guards[0].forwards() {
		d = document{
			test:   conf + " && fwknopd --exit-parse-config" + args,
			load:   start,
			unload: stop,
			body:   file(guards),
			notes: []string{`fwknopd makes the rules with iptables. No rule closes the port here: make sure
that nobody reaches the target without these rules. They need
net.ipv4.ip_forward=1, and a firewall that accepts established connections. No
program may listen on the port itself: a client that connects right after its
packet, before the rule exists, would reach that program.`,
				interfaceNote + `
It must have the lines ENABLE_IPT_ from below; otherwise fwknopd ends.`, acceptNote,
				`If the answers do not come back through this host, add ENABLE_IPT_SNAT Y; and
SNAT_TRANSLATE_IP with an address of this host below. Without ENABLE_IPT_SNAT,
fwknopd lets only one connection through at a time.`,
			},
		}
	} else {
		d = nftDaemon(guards, o, start, stop, file)
		d.notes = append(d.notes, acceptNote)
		d.plainNotes = append(d.plainNotes, interfaceNote,
			`To let fwknopd make its own rules with iptables instead, remove the lines
CMD_CYCLE, do not load the guard, and use the rest as access.conf.`)
	}
	needsFirewallRule := slices.ContainsFunc(guards, func(g guard) bool { return g.SPA.Via != spa.UDP })
	d.notes = append(d.notes, textIf(!needsFirewallRule, `fwknopd sees a packet before any firewall does: its port needs no rule and
answers as before. An fwknopd without packet capture, as in Debian 13, listens on the
UDP port instead: the firewall must accept packets to it, and each fwknopd needs a port
of its own.`), textIf(needsFirewallRule, `With TCP or HTTP, a firewall must accept connections to the port of the packets.
For TCP, fwknopd listens there itself. For HTTP, a web server must listen there; its
answer does not matter.`))
	return d, nil
}

// checkFwknopd refuses guards that one fwknopd cannot serve together. For a NATAccess,
// fwknopd forwards with rules of its own. For other guards, it opens a guard that this
// package writes. One file cannot be for both.
func checkFwknopd(guards []guard, o Options) error {
	if o.Consume {
		return refuse("Consume", nil, "fwknopd only listens, so it cannot drop the packets")
	}
	forwards, listens := guards[0].forwards(), uint16(0)
	for _, g := range guards {
		keys := g.SPA
		switch {
		case g.forwards() && g.copy != "":
			// All fwknopds on a server share the names of their iptables chains.
			return fmt.Errorf("%s: a script cannot load a NATAccess; emit plain rules", g.Name)
		case g.forwards() != forwards:
			return errors.New("profiles with and without NATAccess need two files: " +
				"fwknopd forwards with its own rules")
		case forwards && len(o.Trust) > 0:
			return fmt.Errorf("%s: no rule guards the port of a NATAccess, so no source can be trusted", g.Name)
		case forwards && o.DropPolicy:
			return errors.New("the drop policy would close the ports that fwknopd opens for a NATAccess")
		case keys.Via != spa.TCP:
		case listens > 0 && keys.Port != listens:
			return fmt.Errorf("%s: fwknopd listens at one TCP port, but another profile uses %d; use one SPAPort", g.Name, listens)
		default:
			listens = keys.Port
		}
	}
	return nil
}

// checkSPA refuses a guard that fwknopd cannot serve.
func (g *guard) checkSPA(o Options, guarded []knock.PortRange) error {
	keys := g.SPA
	connection := knock.Step{Transport: knock.TCP, Port: keys.Port} // carries the packet
	switch {
	case g.forwards() && len(g.OpenPorts) > 1:
		return fmt.Errorf("fwknopd forwards one port, but OpenPorts has %d", len(g.OpenPorts))
	case len(keys.HMACKey.Bytes()) == 0 && !o.Force:
		return refuse("Force", nil, "without an HMAC, fwknopd decrypts packets from everyone; set HMACKeyFile")
	case g.OpenFor%time.Second != 0:
		return fmt.Errorf("OpenFor (%v) must be whole seconds", g.OpenFor)
	case keys.Via != spa.UDP && contains(guarded, connection):
		return errors.New("the packet goes to a guarded port")
	case keys.Via != spa.UDP && o.DropPolicy && !contains(o.Allow, connection):
		return refuse("Allow", nil, "the packet needs a connection to %v, which the drop policy closes", connection)
	}
	for _, p := range g.OpenPorts {
		if p.First != p.Last {
			return fmt.Errorf("fwknopd opens only single ports; %v is a range", p)
		}
	}
	return nil
}

// fwknopFile returns the text of an access.conf, with the fwknopd.conf in comments.
func fwknopFile(guards []guard, o Options) string {
	var b lines
	b.WriteString("\n" + comments("#; ", fwknopdConfText(guards, o)))
	for _, g := range guards {
		fwknopStanza(&b, g)
	}
	return b.String()
}

// fwknopdConfText returns the text of the fwknopd.conf.
func fwknopdConfText(guards []guard, o Options) string {
	var filters, lines []string
	if o.Interface != "" {
		lines = append(lines, "PCAP_INTF "+o.Interface+";")
	}
	addNew := func(list *[]string, format string, args ...any) {
		if line := fmt.Sprintf(format, args...); !slices.Contains(*list, line) {
			*list = append(*list, line)
		}
	}
	for _, g := range guards {
		keys := g.SPA
		switch {
		case keys.Via == spa.TCP:
			addNew(&filters, "tcp dst port %d", keys.Port)
			addNew(&lines, "ENABLE_TCP_SERVER Y;")
			addNew(&lines, "TCPSERV_PORT %d;", keys.Port)
		case keys.Via == spa.HTTP:
			addNew(&filters, "tcp dst port %d", keys.Port)
			addNew(&lines, "ENABLE_SPA_OVER_HTTP Y;")
		case keys.Port == 0:
			addNew(&filters, "udp dst portrange %d-%d", spa.RandomPorts.First, spa.RandomPorts.Last)
		default:
			addNew(&filters, "udp dst port %d", keys.Port)
			addNew(&lines, "UDPSERV_PORT %d;", keys.Port) // for an fwknopd without packet capture
		}
		switch {
		case keys.NATLocal:
			addNew(&lines, "ENABLE_IPT_LOCAL_NAT Y;")
		case keys.NAT.IsValid():
			addNew(&lines, "ENABLE_IPT_FORWARDING Y;")
		}
	}
	// PCAP_LOOP_SLEEP is in microseconds. It is short because a client tries to connect
	// again soon after it has sent its packet.
	lines = append(lines, "PCAP_FILTER "+strings.Join(filters, " or ")+";", "PCAP_LOOP_SLEEP 20000;")
	return strings.Join(lines, "\n") + "\n"
}

// fwknopStanza writes a guard's part of the access.conf. The kernel ends an opening by
// a timeout, so that the port closes even if fwknopd has ended.
func fwknopStanza(b *lines, g guard) {
	keys := g.SPA
	set := func(name string, value any) { b.add("%-24s %v", name, value) }
	b.add("\n# %s", g.Name)
	set("SOURCE", "ANY")
	set("OPEN_PORTS", join(g.OpenPorts, ",", func(p knock.PortRange) string { return fmt.Sprintf("%v/%d", p.Transport, p.First) }))
	set("FW_ACCESS_TIMEOUT", int(g.OpenFor/time.Second))
	set("KEY_BASE64", base64.StdEncoding.EncodeToString(keys.Key.Bytes()))
	switch keys.Mode {
	case spa.CBC: // the usual mode, which needs no line
	case spa.Legacy:
		set("ENCRYPTION_MODE", "legacy")
	default:
		set("ENCRYPTION_MODE", strings.ToUpper(keys.Mode.String()))
	}
	if key := keys.HMACKey.Bytes(); len(key) > 0 {
		set("HMAC_KEY_BASE64", base64.StdEncoding.EncodeToString(key))
		set("HMAC_DIGEST_TYPE", strings.ToUpper(strings.ReplaceAll(keys.HMAC.String(), "-", "_")))
	}
	if keys.RequireSource {
		set("REQUIRE_SOURCE_ADDRESS", "Y")
	}
	if g.forwards() {
		// Without FORCE_NAT the packet names the destination, so that everyone with the
		// key could choose it.
		set("FORCE_NAT", fmt.Sprintf("%v %d", keys.NAT.Addr(), keys.NAT.Port()))
		return
	}
	set("CMD_CYCLE_OPEN", fwknopOpenCommand(g))
	set("CMD_CYCLE_CLOSE", "NONE")
}

// fwknopOpenCommand returns the command that admits an address, as knockdOpenCommand does.
// fwknopd runs the command without a shell: it splits the command at blanks, knows no
// quotes, reads up to a semicolon, drops a "$" before other words than its own, and takes
// at most 255 characters. awk therefore makes the blanks, which are \040, and the lines.
func fwknopOpenCommand(g guard) string {
	const space = `\040`
	element := strings.ReplaceAll(" "+nftOpenElement(g, "4")+" {", " ", space) + "$SRC"
	return fmt.Sprintf(`awk -v e=%[2]s BEGIN{print"add"e"}\ndelete"e"}\nadd"e"%[1]stimeout%[1]s%[3]s}"|"nft%[1]s-f-"}`,
		space, element, nftTime(g.OpenFor))
}
