package e2e

import (
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestGuard follows a guard's whole life: the server without it, ssh through
// it, its reload, its end.
func TestGuard(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		// Long enough for a busy machine to log in and to load the rules again.
		r := newRig(t, f, family, threeKnocks, "OpenFor 10s")
		before := r.ruleset(t)

		// Sessions from before the guard, on a server without connection
		// tracking until now: one goes on, and one is idle during the load.
		idle := r.echo(t, "direct")
		r.quiet(t)
		r.header(t, "check")
		r.header(t, "load")
		once := r.ruleset(t)
		idle.say(t, "before the first load")

		r.expect(t, r.client, lab.Dropped)
		through := r.echo(t, "vps")
		through.say(t, "through the guard")
		r.expect(t, r.client, lab.Open)
		r.expect(t, r.attacker, lab.Dropped)

		r.header(t, "load") // again: sessions and openings go on
		if twice := r.ruleset(t); twice != once {
			t.Errorf("loaded once the rules are\n%s\nloaded twice\n%s", once, twice)
		}
		r.expect(t, r.client, lab.Open)
		through.say(t, "after the second load")
		idle.say(t, "after the second load")
		r.expect(t, r.attacker, lab.Dropped)

		transfer(t, r)

		r.await(t, time.Minute, r.client, 22, lab.Dropped)
		through.say(t, "after OpenFor")

		r.header(t, "undo")
		r.expect(t, r.client, lab.Open)
		through.say(t, "after the undo")
		r.expectRuleset(t, before)
	})
}

// TestReloadInMidSequence: a reload between two knocks costs nothing. knockd forgets
// attempts when it reads its configuration again.
func TestReloadInMidSequence(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newGuarded(t, f, family, threeKnocks, "KnockTimeout 20s")
		r.client.Knock(t, r.addr(), sequence("7001/udp 8003/tcp")...)
		r.header(t, "load")
		r.client.Knock(t, r.addr(), sequence("9005/udp")...)
		r.expect(t, r.client, lab.Open)
	})
}

// TestManyAtOnce: several clients of one address get in at the same time. knockd takes
// them for one that errs.
func TestManyAtOnce(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newGuarded(t, f, family, threeKnocks)
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { r.login(t) })
		}
		all.Wait()
	})
}

// TestConsume drops the knocks, for servers that are silent anyway.
func TestConsume(t *testing.T) {
	// Not knockd, which only listens.
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, "Sequence 7001/tcp 8003/udp 9005/tcp")
		r.emit(t, "--consume")
		r.header(t, "load")
		r.expectPort(t, r.client, 7001, lab.Dropped)
		r.expectPort(t, r.client, 7002, lab.Refused)
		r.ssh(t, "true")
	})
}

// TestSeveralProfiles: two profiles of one server open their own ports, and a
// port of both opens to either.
func TestSeveralProfiles(t *testing.T) {
	eachFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newRig(t, f, family, twoKnocks,
			"Host web", "Sequence 1000/udp 2000/udp", "OpenPorts 22 8080-8081", "IgnorePorts 80/tcp")
		r.server.Listen(t, 8080)
		r.emit(t, "web")
		r.header(t, "load")
		r.client.Knock(t, r.addr(), sequence("7001/udp 8003/tcp")...)
		r.attacker.Knock(t, r.addr(), sequence("1000/udp 2000/udp")...)
		r.expectSoon(t, r.client, 22, lab.Open)
		r.expectSoon(t, r.client, 8080, lab.Dropped)
		r.expectSoon(t, r.attacker, 22, lab.Open)
		r.expectSoon(t, r.attacker, 8080, lab.Open)
	})
}

// TestSeveralSchemes: profiles of different schemes in one file do not disturb each
// other, also where each drops the knocks that it knows.
func TestSeveralSchemes(t *testing.T) {
	eachKernelFirewall(t, func(t *testing.T, f lab.Firewall, family lab.Family) {
		key := keyFile(t)
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
			r.emit(t, append([]string{flag}, profiles[:4]...)...)
			r.header(t, "check")
			r.header(t, "load")
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
			r.header(t, "undo")
		}
	})
}
