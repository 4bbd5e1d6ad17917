package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// These tests are of servers and clients that people have already, made by hand
// the way the well-known guides say.

// nftServer is a rule per knock with the next one expected in a set, after
// "Server-side port knocking with Linux nftables" (Michael Kjörling).
const nftServer = `
add table inet filter
add set inet filter progress { type ipv4_addr . inet_service; flags timeout; }
add set inet filter clients { type ipv4_addr; flags timeout; }
add chain inet filter input { type filter hook input priority 0; policy drop; }
add rule inet filter input ct state established,related accept
add rule inet filter input icmp type echo-request accept
add rule inet filter input tcp dport 10000 update @progress { ip saddr . 2345 timeout 5s } drop
add rule inet filter input tcp dport 2345 ip saddr . tcp dport @progress update @progress { ip saddr . 3456 timeout 5s } drop
add rule inet filter input tcp dport 3456 ip saddr . tcp dport @progress update @progress { ip saddr . 1234 timeout 5s } drop
add rule inet filter input tcp dport 1234 ip saddr . tcp dport @progress update @clients { ip saddr timeout 10s } drop
add rule inet filter input ip saddr @clients tcp dport 22 ct state new accept
`

// udpServer has a list per stage, and UDP knocks: what guides for iptables show
// ("Configure port knocking for a Tor node").
const udpServer = `
set -e
iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
for n in 1:23456 2:34567 3:45678 4:56789; do
	iptables -N gate${n%:*}
	[ $n = 1:23456 ] || iptables -A gate${n%:*} -m recent --name auth$((${n%:*} - 1)) --remove
	iptables -A gate${n%:*} -p udp --dport ${n#*:} -m recent --name auth${n%:*} --set -j DROP
	[ $n = 1:23456 ] || iptables -A gate${n%:*} -j gate1
done
iptables -A gate1 -j DROP
iptables -N passed
iptables -A passed -m recent --name auth4 --remove
iptables -A passed -p tcp --dport 22 -j ACCEPT
iptables -A passed -j gate1
iptables -A INPUT -m recent --rcheck --seconds 30 --name auth4 -j passed
for n in 3 2 1; do iptables -A INPUT -m recent --rcheck --seconds 10 --name auth$n -j gate$((n + 1)); done
iptables -A INPUT -j gate1
`

// knockdServer opens by iptables, as in "Port-knocking: open ports on demand".
const knockdServer = `
[options]
	UseSyslog

[SSH]
	sequence = 1111:udp,2222:udp
	seq_timeout = 5
	start_command = iptables -I INPUT -s %IP% -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT
	cmd_timeout = 600
	stop_command = iptables -D INPUT -s %IP% -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT
`

// TestHandMadeServers: portknock opens what is there already.
func TestHandMadeServers(t *testing.T) {
	for name, tt := range map[string]struct {
		firewall int // of the lab's
		sequence string
		start    func(*testing.T, *lab.Host)
	}{
		"nftables": {0, "10000 2345 3456 1234", func(t *testing.T, h *lab.Host) { h.RunInput(t, strings.NewReader(nftServer), "nft", "-f", "-") }},
		"udp":      {1, "23456/udp 34567/udp 45678/udp 56789/udp", func(t *testing.T, h *lab.Host) { h.Shell(t, udpServer) }},
		"udp, old": {2, "23456/udp 34567/udp 45678/udp 56789/udp", func(t *testing.T, h *lab.Host) { h.Shell(t, udpServer) }},
		"knockd": {3, "1111/udp 2222/udp", func(t *testing.T, h *lab.Host) {
			h.Shell(t, "iptables -A INPUT -m state --state ESTABLISHED -j ACCEPT; iptables -A INPUT -p tcp --dport 22 -j DROP")
			h.Knockd(t, knockdServer)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, lab.Firewalls[tt.firewall], lab.IPv4, "Sequence "+tt.sequence)
			tt.start(t, r.Server)
			r.expect(t, r.Client, lab.Dropped)
			if got := r.ssh(t, "echo in"); got != "in\n" {
				t.Errorf("ssh prints %q", got)
			}
			r.expect(t, r.Attacker, lab.Dropped)
		})
	}
}

// TestOtherClients: our rules open to who knocks by knockd's own client, by
// netcat or by nmap.
func TestOtherClients(t *testing.T) {
	clients := map[string]string{
		"knock": "knock $1 7001:udp 8003:tcp 9005:udp",
		"nc":    "echo | nc -uw1 $1 7001; nc -zw1 $1 8003; echo | nc -uw1 $1 9005; true",
		"nmap":  "for p in U:7001 T:8003 U:9005; do nmap -n -Pn -sS -sU -p $p --max-retries 0 --host-timeout 2 $1 >/dev/null; done",
	}
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for name, script := range clients {
			if name != "nc" && family == lab.IPv6 {
				continue // they take another option there, or do not know it
			}
			lab.Require(t, name)
			r := newRig(t, f, family, "Sequence 7001/udp 8003/tcp 9005/udp", "KnockTimeout 1m") // they take seconds
			header(t, r.Server, r.rules, "load")
			r.expect(t, r.Client, lab.Dropped)
			r.Client.Run(t, "sh", "-c", script, "sh", r.Server.Addr(family).String())
			for end := time.Now().Add(10 * time.Second); f.Async && r.probe(t, r.Client) != lab.Open && time.Now().Before(end); {
				time.Sleep(20 * time.Millisecond) // for the daemon
			}
			if got := r.probe(t, r.Client); got != lab.Open {
				t.Errorf("after %s port 22 is %v", name, got)
			}
			r.expect(t, r.Attacker, lab.Dropped)
		}
	})
}

// The server and the client of "Netfilter-based port-knocking" (Roland Mas), in
// the shell they were made for; only the names are ours.
const (
	hourlyPorts = `
hash=$(TZ=UTC date +%Y-%m-%d-%H-f00b4r | md5sum | awk '{print $1}' | tr a-z A-Z)
num=$(echo 16i $hash f | dc)
port() { echo $num 1000 $1 ^ / 1000 % 10000 + f | dc; }
`
	hourlyServer = hourlyPorts + `
set -e
iptables -N knocking
iptables -A knocking -p tcp --dport $(port 0) -m state --state NEW -m recent --name PK1 --set
for i in 1 2 3 4; do
	iptables -N into$i
	iptables -A into$i -m recent --name PK$i --remove
	iptables -A into$i -m recent --name PK$((i + 1)) --set
	iptables -A knocking -p tcp --dport $(port $i) -m state --state NEW -m recent --rcheck --name PK$i --seconds 5 -j into$i
done
iptables -A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
iptables -A INPUT -j knocking
iptables -A INPUT -m recent --rcheck --seconds 5 --name PK5 -m state --state NEW -p tcp --dport 22 -j ACCEPT
iptables -P INPUT DROP
`
	hourlyClient = hourlyPorts + `
for i in 0 1 2 3 4; do nc -w 1 $1 $(port $i) </dev/null >/dev/null 2>&1; done
`
)

var hourlySettings = []string{"Scheme md5-hourly", "PortRange 10000-10999"}

// TestHourlyServer: portknock opens a server that is made that way.
func TestHourlyServer(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "md5sum", "awk", "dc")
		r := newRig(t, f, family, append(hourlySettings, "KeyFile "+secret(t, "secret", "f00b4r"))...)
		r.Server.Shell(t, hourlyServer)
		r.expect(t, r.Client, lab.Dropped)
		if got := r.ssh(t, "echo in"); got != "in\n" {
			t.Errorf("ssh prints %q", got)
		}
		r.expect(t, r.Attacker, lab.Dropped)
	})
}

// TestHourlyClient: a client that knocks that way opens our rules.
func TestHourlyClient(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "md5sum", "awk", "dc", "nc")
		r := newRig(t, f, family, append(hourlySettings, "KeyFile "+secret(t, "secret", "f00b4r"))...)
		header(t, r.Server, r.rules, "load")
		r.expect(t, r.Client, lab.Dropped)
		c := r.Client.Command("sh", "-s", r.Server.Addr(family).String())
		c.Stdin = strings.NewReader(hourlyClient)
		if out, err := c.CombinedOutput(); err != nil && len(out) > 0 { // nc says by its status that nothing listened
			t.Fatalf("%v: %s", err, out)
		}
		r.expect(t, r.Client, lab.Open)
		r.expect(t, r.Attacker, lab.Dropped)
	})
}
