package e2e

import (
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// These tests use servers and clients that users have made by hand, as well-known guides
// describe them.

// nftServer is a script for nft, after "Server-side port knocking with Linux nftables"
// (Michael Kjörling). It has one rule for each knock, and a set that contains the next
// knock of each address.
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

// udpServer is a shell script for iptables, as in "Configure port knocking for a Tor
// node". It has one list for each stage, and UDP knocks.
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

// knockdServer is a knockd.conf that opens the port with iptables, as in "Port-knocking:
// open ports on demand".
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

// TestPortknockOpensHandMadeServers: portknock opens servers that others have made.
func TestPortknockOpensHandMadeServers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		firewall string
		sequence string
		start    func(*testing.T, *lab.Host)
	}{{
		firewall: "nftables",
		sequence: "10000 2345 3456 1234",
		start:    func(t *testing.T, h *lab.Host) { h.RunInput(t, strings.NewReader(nftServer), "nft", "-f", "-") },
	}, {
		firewall: "iptables-nft",
		sequence: "23456/udp 34567/udp 45678/udp 56789/udp",
		start:    func(t *testing.T, h *lab.Host) { h.Shell(t, udpServer) },
	}, {
		firewall: "iptables-legacy",
		sequence: "23456/udp 34567/udp 45678/udp 56789/udp",
		start:    func(t *testing.T, h *lab.Host) { h.Shell(t, udpServer) },
	}, {
		firewall: "knockd",
		sequence: "1111/udp 2222/udp",
		start: func(t *testing.T, h *lab.Host) {
			h.Shell(t, "iptables -A INPUT -m state --state ESTABLISHED -j ACCEPT; iptables -A INPUT -p tcp --dport 22 -j DROP")
			h.Knockd(t, lab.File(t, "knockd.conf", knockdServer))
		},
	}} {
		t.Run(tt.firewall, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, firewallNamed(tt.firewall), lab.IPv4, "Sequence "+tt.sequence)
			tt.start(t, r.server)
			r.expect(t, r.client, lab.Dropped)
			r.login(t)
			r.expect(t, r.attacker, lab.Dropped)
		})
	}
}

// TestOtherClientsOpenOurRules: our rules let through a client that knocks with knockd's
// own client (knock), netcat (nc) or nmap.
func TestOtherClientsOpenOurRules(t *testing.T) {
	clients := map[string]string{
		"knock": "knock $1 7001:udp 8003:tcp 9005:udp",
		"nc":    "echo | nc -uw1 $1 7001; nc -zw1 $1 8003; echo | nc -uw1 $1 9005; true",
		"nmap":  "for p in U:7001 T:8003 U:9005; do nmap -n -Pn -sS -sU -p $p --max-retries 0 --host-timeout 2 $1 >/dev/null; done",
	}
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for name, script := range clients {
			if name != "nc" && family == lab.IPv6 {
				continue // with IPv6, knock and nmap need another option or do not support it
			}
			lab.Require(t, name)
			r := newGuardedRig(t, f, family, threeKnocks, "KnockTimeout 1m") // these clients need seconds for three knocks
			r.expect(t, r.client, lab.Dropped)
			r.client.Run(t, "sh", "-c", script, "sh", r.addr().String())
			r.expectSoon(t, r.client, 22, lab.Open)
			r.expect(t, r.attacker, lab.Dropped)
		}
	})
}

// These scripts are the server and the client of "Netfilter-based port-knocking" (Roland
// Mas), in the same shell language. Only the names are changed.
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

// hourlySettings returns the settings of a profile that fits hourlyServer and
// hourlyClient.
func hourlySettings(t testing.TB) []string {
	t.Helper()
	return []string{"Scheme md5-hourly", "PortRange 10000-10999", "KeyFile " + lab.File(t, "secret", "f00b4r")}
}

// TestPortknockOpensMD5HourlyServer: portknock opens a server that runs hourlyServer.
func TestPortknockOpensMD5HourlyServer(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "md5sum", "awk", "dc")
		r := newRig(t, f, family, hourlySettings(t)...)
		r.server.Shell(t, hourlyServer)
		r.expect(t, r.client, lab.Dropped)
		r.login(t)
		r.expect(t, r.attacker, lab.Dropped)
	})
}

// TestMD5HourlyClientOpensOurRules: our rules let through a client that runs
// hourlyClient.
func TestMD5HourlyClientOpensOurRules(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		lab.Require(t, "md5sum", "awk", "dc", "nc")
		r := newGuardedRig(t, f, family, append(hourlySettings(t), "KnockTimeout 1m")...) // this client starts a process for each knock
		r.expect(t, r.client, lab.Dropped)
		c := r.client.Command("sh", "-s", r.addr().String())
		c.Stdin = strings.NewReader(hourlyClient)
		if out, err := c.CombinedOutput(); err != nil && len(out) > 0 { // nc fails without output, because no service listens on the knock ports
			t.Fatalf("%v: %s", err, out)
		}
		r.expect(t, r.client, lab.Open)
		r.expect(t, r.attacker, lab.Dropped)
	})
}
