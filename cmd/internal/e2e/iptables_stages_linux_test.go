package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// ports returns a sequence of UDP ports.
func ports(first, n int) knock.Sequence {
	var s knock.Sequence
	for i := range n {
		s = append(s, knock.Step{Transport: knock.UDP, Port: uint16(first + 7*i)})
	}
	return s
}

// TestIptablesLongSequencesOpen: the longest sequences open the port, with each knock doubled
// too. A sequence continues after a reload. All of it also counts on trial.
func TestIptablesLongSequencesOpen(t *testing.T) {
	eachIptablesFamily(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		for _, n := range []int{31, knock.MaxSteps} {
			knocks := ports(20000, n)
			var doubled knock.Sequence
			for _, k := range knocks {
				doubled = append(doubled, k, k)
			}
			r := newIptablesRig(t, f, family, "Sequence "+knocks.String(), "KnockTimeout 1m", "OpenFor 1m")
			script := r.iptScript(t, []string{"vps"})
			r.fw(t, script, "fw_load", "vps")
			for range 3 { // an address that knocks again
				r.knockFrom(t, r.client.Addr(family), knocks...)
			}
			stopped := r.freshAddr()
			r.knockFrom(t, stopped, doubled[:2*n-3]...)
			r.fw(t, script, "fw_load", "vps")
			r.expect(t, r.client, lab.Open)
			r.expectAnswers(t, "one knock missing", stopped, map[uint16]lab.State{22: lab.Dropped})
			r.knockFrom(t, stopped, doubled[2*n-3:]...)
			r.expectAnswers(t, "every knock doubled", stopped, map[uint16]lab.State{22: lab.Open})

			r.fw(t, script, "fw_trial", "60", "vps")
			onTrial := r.freshAddr()
			r.knockFrom(t, onTrial, doubled...)
			r.expectAnswers(t, "on trial", onTrial, map[uint16]lab.State{22: lab.Open})
		}
	})
}

// TestIptablesSimultaneousKnocksCountOnce: two copies of a knock that the server judges at the
// same moment, on two processors, count as one knock at most.
func TestIptablesSimultaneousKnocksCountOnce(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		knocks := ports(20000, 5)
		r := newIptablesRig(t, f, family, "Sequence "+knocks.String(), "KnockTimeout 5m")
		r.emitRules(t)
		r.runHeaderLine(t, "load")
		var addrs []netip.Addr
		for range 90 { // a list holds 100 addresses
			addrs = append(addrs, r.freshAddr())
		}
		for n, k := range knocks[:4] {
			r.sendTwice(t, addrs, k.Port)
			most := 0
			for line := range strings.Lines(r.server.Shell(t, "cat /proc/net/xt_recent/portknock_vps_at")) {
				_, stamps, _ := strings.Cut(line, "oldest_pkt: ")
				switch made := 1 + strings.Count(stamps, ","); {
				case made > n+1:
					t.Errorf("two copies of knock %d bring an address to stage %d", n+1, made)
				case made == n+1:
					most++
				}
			}
			t.Logf("%d of %d addresses are at stage %d", most, len(addrs), n+1)
			if most < len(addrs)/4 {
				t.Errorf("only %d of %d addresses are at stage %d", most, len(addrs), n+1)
			}
		}
	})
}

// sendTwice sends a datagram from each address, and its copy from another processor at the
// same moment.
func (r *rig) sendTwice(t testing.TB, addrs []netip.Addr, port uint16) {
	t.Helper()
	var ready atomic.Int64
	var senders sync.WaitGroup
	for cpu := range 2 {
		senders.Go(func() {
			r.client.Do(func() {
				var set unix.CPUSet
				set.Set(cpu)
				_ = unix.SchedSetaffinity(0, &set) // a machine with one processor has no second one
				listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
					return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
				}}
				for i, from := range addrs {
					c, err := listen.ListenPacket(context.Background(), "udp4", netip.AddrPortFrom(from, 0).String())
					if err != nil {
						t.Error(err)
						ready.Add(2)
						continue
					}
					for ready.Add(1); ready.Load() < int64(2*i+2); {
					}
					if _, err := c.(*net.UDPConn).WriteToUDPAddrPort([]byte("x"), r.port(port)); err != nil {
						t.Error(err)
					}
					_ = c.Close()
				}
			})
		})
	}
	senders.Wait()
}

// TestIptablesCostGrowsSlowlyWithProfiles: a packet of an address that has not knocked costs
// at most eight times as much with 20 profiles of 10 knocks as with one profile of 3.
func TestIptablesCostGrowsSlowlyWithProfiles(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		load := func(profiles, knocks int) *rig {
			r := newListeningRig(t, f, family)
			var settings, names []string
			for i := range profiles {
				names = append(names, fmt.Sprint("user", i))
				settings = append(settings, "Host "+names[i], "Sequence "+ports(20000+100*i, knocks).String())
			}
			r.rules = emitRulesFor(t, r.server, f, lab.File(t, "config", settings...), names...)
			r.runHeaderLine(t, "load")
			return r
		}
		rigs := []*rig{load(1, 3), load(20, 10)}
		cost := []time.Duration{time.Hour, time.Hour}
		for range 40 { // the rigs take turns, because other programs disturb single sweeps
			for i, r := range rigs {
				began := time.Now()
				r.attacker.Flood(t, 300, func(i int) lab.Packet { return lab.Packet{Dst: r.port(uint16(1 + 7919*i%65535))} })
				cost[i] = min(cost[i], time.Since(began)/300)
			}
		}
		t.Logf("a packet takes %v, and %v with many profiles", cost[0], cost[1])
		if cost[1] > 8*cost[0] {
			t.Errorf("with 20 profiles of 10 knocks a packet takes %v, with one of 3 knocks %v", cost[1], cost[0])
		}
	})
}

// iptListPerStage are the rules that earlier versions wrote for threeKnocks, which had a list
// for each stage.
const iptListPerStage = `*mangle
:PORTKNOCK - [0:0]
:PORTKNOCKIN - [0:0]
:PORTKNOCK-vps - [0:0]
-I PREROUTING -j PORTKNOCK
-I INPUT -j PORTKNOCKIN
-A PORTKNOCK -i lo -m comment --comment "0:-" -j RETURN
-A PORTKNOCK -p tcp --syn --dport 22 -m recent --name portknock_vps_open --rcheck --seconds 30 -m comment --comment "1:vps" -j RETURN
-A PORTKNOCK -p tcp --tcp-flags RST,ACK NONE --dport 22 -m addrtype --dst-type LOCAL -m comment --comment "2:vps" -j DROP
-A PORTKNOCK -m conntrack --ctstate ESTABLISHED,RELATED -m comment --comment "3:-" -j RETURN
-A PORTKNOCK -m addrtype ! --dst-type LOCAL -m comment --comment "6:-" -j RETURN
-A PORTKNOCK -p tcp ! --syn -m comment --comment "6:-" -j RETURN
-A PORTKNOCK -p tcp -m comment --comment "7:vps" -j PORTKNOCK-vps
-A PORTKNOCK -p udp -m comment --comment "7:vps" -j PORTKNOCK-vps
-A PORTKNOCKIN -i lo -m comment --comment "0:-" -j RETURN
-A PORTKNOCKIN -p tcp --syn --dport 22 -m recent --name portknock_vps_open --rcheck --seconds 30 -m comment --comment "1:vps" -j RETURN
-A PORTKNOCKIN -p tcp --syn -m conntrack --ctstate DNAT --ctorigdstport 22 -m recent --name portknock_vps_open --rcheck --seconds 30 -m comment --comment "1:vps" -j RETURN
-A PORTKNOCKIN -p tcp --tcp-flags RST,ACK NONE --dport 22 -m comment --comment "2:vps" -j DROP
-A PORTKNOCKIN -m conntrack --ctstate ESTABLISHED,RELATED -m comment --comment "3:-" -j RETURN
-A PORTKNOCK-vps -p udp --dport 9005 -m recent --name portknock_vps_2 --rcheck --seconds 5 -m recent --name portknock_vps_open --set -j RETURN
-A PORTKNOCK-vps -p tcp --syn --dport 8003 -m recent --name portknock_vps_1 --rcheck --seconds 5 -m recent --name portknock_vps_2 --set -j RETURN
-A PORTKNOCK-vps -p udp --dport 7001 -m recent --name portknock_vps_1 --rcheck --seconds 1 --hitcount 20 -j RETURN
-A PORTKNOCK-vps -p udp --dport 7001 -m recent --name portknock_vps_1 --set -j RETURN
-A PORTKNOCK-vps -p tcp --syn --dport 80 -j RETURN
-A PORTKNOCK-vps -m recent --name portknock_vps_1 --remove
-A PORTKNOCK-vps -m recent --name portknock_vps_2 --remove
COMMIT`

// TestIptablesTakesOverListPerStage: a load over rules of an earlier version keeps the openings
// and guards the port at every moment. A trial over them can be canceled and kept.
func TestIptablesTakesOverListPerStage(t *testing.T) {
	eachIptables(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newIptablesRig(t, f, family, threeKnocks)
		before := r.ruleset(t)
		old := lab.File(t, "old", iptListPerStage)
		script := r.iptScript(t, []string{"vps"})
		r.emitRules(t)
		knocks := sequence(strings.TrimPrefix(threeKnocks, "Sequence "))
		for name, do := range map[string]func(){
			"load":   func() { r.runHeaderLine(t, "load") },
			"cancel": func() { r.fw(t, script, "fw_trial", "60", "vps"); r.fw(t, script, "fw_cancel") },
			"keep":   func() { r.fw(t, script, "fw_trial", "60", "vps"); r.fw(t, script, "fw_keep", "vps") },
		} {
			r.server.Shell(t, "iptables-restore -n "+old+" && ip6tables-restore -n "+old)
			admitted := r.freshAddr()
			r.knockFrom(t, admitted, knocks...)
			if _, answers := r.attack(t, do); answers > 0 {
				t.Errorf("%s: the server has answered %d SYNs", name, answers)
			}
			r.expectAnswers(t, name+": an address that was admitted before", admitted, map[uint16]lab.State{22: lab.Open})
			fresh := r.freshAddr()
			r.knockFrom(t, fresh, knocks[0], knocks[1])
			r.expectAnswers(t, name+": two of three knocks", fresh, map[uint16]lab.State{22: lab.Dropped})
			r.knockFrom(t, fresh, knocks[2])
			r.expectAnswers(t, name+": three knocks", fresh, map[uint16]lab.State{22: lab.Open})
			if lists := r.server.Shell(t, "ls /proc/net/xt_recent"); name != "cancel" && strings.Contains(lists, "portknock_vps_1") {
				t.Errorf("%s leaves lists of the old rules: %q", name, lists)
			}
			r.runHeaderLine(t, "unload")
			r.expectRuleset(t, before)
		}
	})
}

// TestIptablesLoadAsksForLongLists: if a load also loads xt_recent, it asks for long lists that
// only root can read, unless the administrator has set their length.
func TestIptablesLoadAsksForLongLists(t *testing.T) {
	t.Parallel()
	r := newIptablesRig(t, firewallNamed("iptables-legacy"), lab.IPv4, threeKnocks)
	script := r.iptScript(t, []string{"vps"})
	dir := t.TempDir()
	r.server.Shell(t, "mkdir /run/modprobe.d && printf '#!/bin/sh\necho \"$@\" >>"+dir+"/asked\n' >"+dir+"/modprobe && chmod 700 "+dir+"/modprobe")
	for options, want := range map[string]string{
		"options nf_conntrack hashsize=8192":      "-q xt_recent ip_list_perms=0600 ip_list_tot=4096 ip_list_hash_size=512\n",
		"options xt_recent ip_list_tot=20000 x=y": "-q xt_recent ip_list_perms=0600\n",
	} {
		r.server.Shell(t, "rm -f "+dir+"/asked; echo '"+options+"' >/run/modprobe.d/local.conf; PATH="+dir+":$PATH sh "+script+" fw_load vps")
		if got := lab.ReadFile(t, dir+"/asked"); got != want {
			t.Errorf("with %q, the load runs modprobe %q, want %q", options, got, want)
		}
	}
}

// TestRulesLoadNear1970: rules that a server writes when its clock has not left 1970 yet can be
// loaded, and guard the port.
func TestRulesLoadNear1970(t *testing.T) {
	eachOf(t, kernelFirewalls(), onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		key := keyFileSetting(t)
		for _, scheme := range []string{"rotating", "token", "md5-hourly"} {
			for _, since := range []time.Duration{0, 30 * time.Second, time.Hour} {
				r := newListeningRig(t, f, family)
				r.profile = r.vpsProfile(t, "Scheme "+scheme, key)
				r.rules = t.TempDir() + "/rules"
				shift := -time.Duration(time.Now().Unix())*time.Second + since
				r.server.Run(t, "env", shiftVariable+"="+shift.String(), "portknock", "emit-rules", "-c", r.profile,
					"--format", format(f), "--horizon", "3h", "--output", r.rules, "vps")
				r.runHeaderLine(t, "test")
				r.runHeaderLine(t, "load")
				r.expect(t, r.client, lab.Dropped)
			}
		}
	})
}
