package e2e

import (
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestGuardFromLoadToUnload follows a guard from its first load to its unload: the server
// without a guard, ssh through the guard, a reload, the end of an opening, and the unload.
func TestGuardFromLoadToUnload(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		// OpenFor is long enough for a busy machine to log in and to reload the rules.
		r := newRig(t, f, family, threeKnocks, "OpenFor 10s")
		before := r.ruleset(t)

		// This session is older than the guard, and is idle during the load. The server
		// did not track connections before the load.
		idle := r.openEcho(t, "direct")
		r.awaitAllAcknowledged(t)
		r.runHeaderLine(t, "test")
		r.runHeaderLine(t, "load")
		once := r.ruleset(t)
		idle.say(t, "before the first load")

		r.expect(t, r.client, lab.Dropped)
		through := r.openEcho(t, "vps")
		through.say(t, "through the guard")
		r.expect(t, r.client, lab.Open)
		r.expect(t, r.attacker, lab.Dropped)

		r.runHeaderLine(t, "load") // a reload keeps sessions and openings
		if twice := r.ruleset(t); twice != once {
			t.Errorf("after the first load the rules are\n%s\nafter the second load\n%s", once, twice)
		}
		r.expect(t, r.client, lab.Open)
		through.say(t, "after the second load")
		idle.say(t, "after the second load")
		r.expect(t, r.attacker, lab.Dropped)

		transfer(t, r)

		r.awaitPort(t, time.Minute, r.client, 22, lab.Dropped)
		through.say(t, "after OpenFor")

		r.runHeaderLine(t, "unload")
		r.expect(t, r.client, lab.Open)
		through.say(t, "after the unload")
		r.expectRuleset(t, before)
	})
}

// TestReloadKeepsStages: a client continues its sequence after a reload between two
// knocks. This test leaves out knockd, which forgets all stages when it rereads its
// configuration.
func TestReloadKeepsStages(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newGuardedRig(t, f, family, threeKnocks, "KnockTimeout 20s")
		r.client.Knock(t, r.addr(), sequence("7001/udp 8003/tcp")...)
		r.runHeaderLine(t, "load")
		r.client.Knock(t, r.addr(), sequence("9005/udp")...)
		r.expect(t, r.client, lab.Open)
	})
}

// TestClientsWithOneAddressLogInAtOnce: several clients with one address log in at the
// same time. This test leaves out knockd, which takes their knocks for wrong knocks of
// one client.
func TestClientsWithOneAddressLogInAtOnce(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newGuardedRig(t, f, family, threeKnocks)
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { r.login(t) })
		}
		all.Wait()
	})
}

// TestConsumeDropsKnocks: with --consume the guard drops the knocks. This is for servers
// that drop packets to closed ports anyway.
func TestConsumeDropsKnocks(t *testing.T) {
	// This leaves out knockd, which only listens and cannot drop packets.
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/tcp 8003/udp 9005/tcp")
		r.emitRules(t, "--consume")
		r.runHeaderLine(t, "load")
		r.expectPort(t, r.client, 7001, lab.Dropped)
		r.expectPort(t, r.client, 7002, lab.Refused)
		r.ssh(t, "true")
	})
}

// TestEachProfileOpensItsPorts: each of two profiles of one server opens its own ports.
// A port of both profiles opens with the knocks of either profile.
func TestEachProfileOpensItsPorts(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks,
			"Host web", "Sequence 1000/udp 2000/udp", "OpenPorts 22 8080-8081", "IgnorePorts 80/tcp")
		r.server.Listen(t, 8080)
		r.emitRules(t, "web")
		r.runHeaderLine(t, "load")
		r.client.Knock(t, r.addr(), sequence("7001/udp 8003/tcp")...)
		r.attacker.Knock(t, r.addr(), sequence("1000/udp 2000/udp")...)
		r.expectSoon(t, r.client, 22, lab.Open)
		r.expectSoon(t, r.client, 8080, lab.Dropped)
		r.expectSoon(t, r.attacker, 22, lab.Open)
		r.expectSoon(t, r.attacker, 8080, lab.Open)
	})
}

// TestSchemesInOneFileDoNotInterfere: profiles of different schemes work in one rules
// file. They also work with --consume, which makes the rules of each profile drop its
// knocks.
func TestSchemesInOneFileDoNotInterfere(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		key := keyFileSetting(t)
		r := newRig(t, f, family, twoKnocks,
			"Host hour", "OpenPorts 8001", "Scheme rotating", key,
			"Host minutes", "OpenPorts 8002", "Scheme rotating", "Period 6m", "Protocol tcp", key,
			"Host token", "OpenPorts 8004", "Scheme token", key,
			"Host md5", "OpenPorts 8005", "Scheme md5-hourly", "PortRange 10000-10999", key)
		profiles := []string{"hour", "minutes", "token", "md5", "vps"}
		ports := []uint16{8001, 8002, 8004, 8005, 22}
		for _, port := range ports[:4] {
			r.server.Listen(t, port)
		}
		for _, flag := range []string{"--policy=guard", "--consume"} {
			r.emitRules(t, append([]string{flag}, profiles[:4]...)...)
			r.runHeaderLine(t, "test")
			r.runHeaderLine(t, "load")
			for i, name := range profiles {
				r.client.Run(t, "portknock", "knock", "-c", r.profile, "-o", "HostName="+r.addr().String(), name)
				for j, port := range ports {
					want := lab.Dropped
					if j <= i {
						want = lab.Open
					}
					if got := r.client.Probe(t, r.port(port)); got != want {
						t.Errorf("%s, after the knocks of %s: port %d is %v, want %v", flag, name, port, got, want)
					}
				}
			}
			r.runHeaderLine(t, "unload")
		}
	})
}
