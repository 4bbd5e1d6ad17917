package lab

import (
	"strings"
	"testing"
)

func TestSSHLogsInOverBothFamilies(t *testing.T) {
	t.Parallel()
	n := New(t)
	s := n.Server.SSHD(t, []uint16{22, 2222})
	for _, f := range Families {
		config := s.ClientConfig(t, "Host vps", "HostName "+n.Server.Addr(f).String(), "Port 2222")
		if got := n.Client.Run(t, "ssh", "-F", config, "vps", "hostname"); got != "server\n" {
			t.Errorf("%v: hostname over ssh is %q, want \"server\\n\"", f, got)
		}
	}
	if !strings.Contains(s.Log.String(), "Accepted publickey for root") {
		t.Errorf("the login is not in sshd's log: %s", s.Log)
	}
}

func TestIptablesVariantOpensAfterKnock(t *testing.T) {
	t.Parallel()
	for _, f := range Firewalls {
		if !strings.HasPrefix(f.Name, "iptables") {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			n := New(t)
			for _, h := range []*Host{n.Server, n.Attacker} {
				f.Install(t, h)
			}
			n.Server.Listen(t, 22)
			n.Server.Shell(t, `set -e
for c in iptables ip6tables; do
	$c -V
	$c -t mangle -A PREROUTING -m conntrack --ctstate ESTABLISHED -j ACCEPT
	$c -t mangle -A PREROUTING -m addrtype ! --dst-type LOCAL -j ACCEPT
	$c -t mangle -A PREROUTING -p udp --dport 7000 -m recent --name in$c --set
	$c -t mangle -A PREROUTING -p tcp --dport 22 -m recent --name in$c ! --rcheck --seconds 9 -j DROP
done
iptables-save | iptables-restore
ip6tables-save | ip6tables-restore`)
			if got := n.Server.Shell(t, "iptables -V"); strings.Contains(got, "legacy") != (f.variant == "-legacy") {
				t.Errorf("after Install of %s, iptables is %s", f.Name, got)
			}
			for _, family := range Families {
				to := n.Server.Addr(family)
				if got := n.Client.Probe(t, addrPort(to, 22)); got != Dropped {
					t.Errorf("%v: port 22 is %v before the knock", family, got)
				}
				n.Client.Send(t, Packet{Dst: addrPort(to, 7000)})
				if got := n.Client.Probe(t, addrPort(to, 22)); got != Open {
					t.Errorf("%v: port 22 is %v after the knock", family, got)
				}
			}
			if got := n.Server.Shell(t, "cat /proc/net/xt_recent/iniptables"); !strings.Contains(got, n.Client.Addr(IPv4).String()) {
				t.Errorf("the server's xt_recent list does not contain the client: %q", got)
			}
			if got := n.Attacker.Shell(t, "ls /proc/net/xt_recent 2>/dev/null || :"); got != "" {
				t.Errorf("the attacker has xt_recent lists of another host: %q", got)
			}
		})
	}
}

func TestKnockdSeesKnocksOfBothFamilies(t *testing.T) {
	t.Parallel()
	n := New(t)
	d := n.Server.Knockd(t, File(t, "knockd.conf", `[options]
	logfile = /run/knockd.log
[ssh]
	sequence = 7001:udp,8003:tcp
	seq_timeout = 2
	tcpflags = syn
	start_command = echo opened for %IP%
	start_command_6 = echo opened for %IP%
	cmd_timeout = 1
	stop_command = true
	stop_command_6 = true
`))
	for _, f := range Families {
		for _, from := range []*Host{n.Client, n.Attacker} {
			to := n.Server.Addr(f)
			from.Send(t, Packet{Dst: addrPort(to, 7001)}, Packet{Dst: addrPort(to, 8003), Flags: SYN})
			d.Log.Await(t, "opened for "+from.Addr(f).String(), 1)
		}
	}
}
