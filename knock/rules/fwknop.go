package rules

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/spa"
)

// fwknopdConf is where the load line writes what fwknopd wants in a file of its
// own.
const fwknopdConf = "/run/portknock.fwknopd.conf"

// emitFwknop writes an access.conf. As with knockd, what fwknopd opens is an
// nftables guard of ours, in comments of the same file, and so is the
// fwknopd.conf: there is one file to keep and to load.
func emitFwknop(w io.Writer, guards []guard, o Options) error {
	if o.Consume {
		return errors.New("fwknopd only listens, so it cannot consume the packets")
	}
	file := quote(o.File)
	nft := `sed -n "s/^#: //p" ` + file + ` | nft `
	err := header{
		Guards: guards,
		Check:  nft + "-c -f -",
		// An fwknopd that has nothing to listen at ends without a word, a moment after
		// it has gone into the background. That is no reason to close the ports to
		// everybody: it comes first.
		Load: `sed -n "s/^#; //p" ` + file + " >" + fwknopdConf + " && chmod 600 " + fwknopdConf +
			" && { pkill -HUP -x fwknopd || { fwknopd -a " + file + " -c " + fwknopdConf + " && sleep 1 && pkill -0 -x fwknopd; }" +
			` || { echo "fwknopd does not run: its log says why" >&2; false; }; } && ` + nft + "-f -",
		Watch: "nft list table inet portknock",
		// A load right behind it must not take the dying one for one that runs.
		Undo: `timeout 5 sh -c "while pkill -x fwknopd; do sleep 0.1; done"; ` + nftUndo,
		Notes: []string{
			`"flush ruleset", with which Debian's /etc/nftables.conf begins, removes the
guard and leaves the port open: load again after it, and when the server starts.`,
			`fwknopd watches one interface, eth0 unless you name another: PCAP_INTF, below.
One that runs already keeps its own fwknopd.conf and is only told to read this
file, if it is the one that it reads.`,
			`Packets are for IPv4; nobody gets in by IPv6. fwknopd takes a packet whose clock
is within 120 s of this server's, and each only once.`,
			`Where fwknopd is to make rules of its own instead, by iptables: leave out the
lines CMD_CYCLE, do not load the guard, and give it the rest as its access.conf.`,
			fwknopTransportNote(guards),
		},
	}.write(w, o)
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteByte('\n')
	for line := range strings.Lines(strings.TrimLeft(nftRules{guards, o, false}.text(), "\n")) {
		b.WriteString("#: " + line)
	}
	b.WriteByte('\n')
	for line := range strings.Lines(fwknopdLines(guards)) {
		b.WriteString("#; " + line)
	}
	for _, g := range guards {
		b.WriteString(fwknopStanza(g))
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// checkSPA refuses what fwknopd cannot do with a guard of ours.
func checkSPA(g Guard, o Options, closed []knock.PortRange) error {
	a := g.SPA
	switch {
	case a.NAT.IsValid():
		return errors.New("NATAccess needs the rules that fwknopd makes by itself, and these do without")
	case len(a.HMACKey.Bytes()) == 0 && !o.Force:
		return errors.New("without an HMAC, fwknopd decrypts whatever anybody sends: set a HMACKeyFile, or insist with --force")
	case g.OpenFor%time.Second != 0:
		return fmt.Errorf("an OpenFor of %v is not whole seconds", g.OpenFor)
	case a.Via != spa.UDP && contains(closed, knock.Step{Transport: knock.TCP, Port: a.Port}):
		return errors.New("the packet goes to a guarded port")
	}
	for _, p := range g.OpenPorts {
		if p.First != p.Last {
			return fmt.Errorf("fwknopd opens single ports, and %v is a range", p)
		}
	}
	return nil
}

// fwknopTransportNote tells what packets need to get through; "" if nothing.
func fwknopTransportNote(guards []guard) string {
	if !slices.ContainsFunc(guards, func(g guard) bool { return g.SPA.Via != spa.UDP }) {
		return `fwknopd sees a packet before any firewall does: its port needs no rule, and
answers as it always has.`
	}
	return `By TCP or HTTP, fwknopd only sees what reaches somebody: a firewall must let
connections to that port pass. For TCP it listens itself; for HTTP there must be
a web server at the port, whatever it answers.`
}

// fwknopdLines returns the fwknopd.conf.
func fwknopdLines(guards []guard) string {
	var filters []string
	lines := []string{"PCAP_INTF eth0;"}
	for _, g := range guards {
		a := g.SPA
		filter := fmt.Sprintf("udp dst port %d", a.Port)
		switch {
		case a.Via != spa.UDP:
			filter = fmt.Sprintf("tcp dst port %d", a.Port)
		case a.Port == 0:
			filter = fmt.Sprintf("udp dst portrange %d-%d", spa.FirstRandom, spa.LastRandom)
		}
		if !slices.Contains(filters, filter) {
			filters = append(filters, filter)
		}
		var more []string
		switch a.Via {
		case spa.TCP:
			more = []string{"ENABLE_TCP_SERVER Y;", fmt.Sprintf("TCPSERV_PORT %d;", a.Port)}
		case spa.HTTP:
			more = []string{"ENABLE_SPA_OVER_HTTP Y;"}
		}
		for _, line := range more {
			if !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	// In microseconds: a client that has sent its packet does not wait long
	// before it tries again.
	lines = append(lines, "PCAP_FILTER "+strings.Join(filters, " or ")+";", "PCAP_LOOP_SLEEP 20000;")
	return strings.Join(lines, "\n") + "\n"
}

// fwknopStanza returns a guard's part of the access.conf. The kernel closes what
// fwknopd has opened, even if it should be gone by then.
func fwknopStanza(g guard) string {
	a := g.SPA
	words := make([]string, len(g.OpenPorts))
	for i, p := range g.OpenPorts {
		words[i] = fmt.Sprintf("%v/%d", p.Transport, p.First)
	}
	lines := [][2]string{
		{"SOURCE", "ANY"},
		{"OPEN_PORTS", strings.Join(words, ",")},
		{"FW_ACCESS_TIMEOUT", fmt.Sprint(int(g.OpenFor / time.Second))},
		{"KEY_BASE64", base64.StdEncoding.EncodeToString(a.Key.Bytes())},
	}
	if a.Mode == spa.Legacy {
		lines = append(lines, [2]string{"ENCRYPTION_MODE", "legacy"})
	} else if a.Mode != spa.CBC {
		lines = append(lines, [2]string{"ENCRYPTION_MODE", strings.ToUpper(a.Mode.String())})
	}
	if key := a.HMACKey.Bytes(); len(key) > 0 {
		lines = append(lines,
			[2]string{"HMAC_KEY_BASE64", base64.StdEncoding.EncodeToString(key)},
			[2]string{"HMAC_DIGEST_TYPE", strings.ToUpper(strings.ReplaceAll(a.HMAC.String(), "-", "_"))})
	}
	if a.Allow.IsValid() {
		lines = append(lines, [2]string{"REQUIRE_SOURCE_ADDRESS", "Y"})
	}
	lines = append(lines,
		[2]string{"CMD_CYCLE_OPEN", fmt.Sprintf("nft add element inet portknock open4_%s { $SRC timeout %s }", g.ID, nftTime(g.OpenFor))},
		[2]string{"CMD_CYCLE_CLOSE", "NONE"})
	var b strings.Builder
	fmt.Fprintf(&b, "\n# %s\n", g.Name)
	for _, l := range lines {
		fmt.Fprintf(&b, "%-24s %s\n", l[0], l[1])
	}
	return b.String()
}
