package main

import (
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

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
	for _, f := range lab.Firewalls {
		if format(f) != "iptables" {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			lab.Require(t, "md5sum", "awk", "dc")
			r := newRig(t, f, lab.IPv4, append(hourlySettings, "KeyFile "+secret(t, "secret", "f00b4r"))...)
			r.Server.Shell(t, hourlyServer)
			r.expect(t, r.Client, lab.Dropped)
			if got := r.ssh(t, "echo in"); got != "in\n" {
				t.Errorf("ssh prints %q", got)
			}
			r.expect(t, r.Attacker, lab.Dropped)
		})
	}
}

// TestHourlyClient: a client that knocks that way opens our rules.
func TestHourlyClient(t *testing.T) {
	eachTimedFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
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
