package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// part is a profile of a server with several profiles that are loaded one after another.
// It opens port 22 and a port that no other profile opens.
type part struct {
	name  string
	port  uint16
	steps knock.Sequence
	flags []string // for emit-rules
}

// numberedParts returns n parts. No sequence contains knocks of another one.
func numberedParts(n int) []part {
	parts := make([]part, n)
	for i := range parts {
		text := fmt.Sprintf("%d/udp %d/tcp", 3100+i, 2100+i)
		parts[i] = part{name: fmt.Sprintf("p%d", i), port: uint16(8000 + i), steps: sequence(text)}
	}
	return parts
}

// profile writes a profile file for a part.
func (p part) profile(t testing.TB, more ...string) string {
	t.Helper()
	return lab.File(t, "config", append([]string{"Host " + p.name, "Sequence " + p.steps.String(),
		fmt.Sprintf("OpenPorts 22 %d", p.port), "KnockTimeout 1m", "OpenFor 5m"}, more...)...)
}

// partLoader loads the rules of one part.
type partLoader func(t testing.TB, r *rig, p part)

// partLoaders are the ways to load a part.
func partLoaders(t testing.TB) map[string]partLoader {
	ash := busybox(t)
	byScript := func(shell []string) partLoader {
		return func(t testing.TB, r *rig, p part) {
			t.Helper()
			p.script(t, r).with(shell).run(t, "load")
		}
	}
	return map[string]partLoader{
		"nft": func(t testing.TB, r *rig, p part) {
			t.Helper()
			r.server.Run(t, "nft", "-f", emitRulesFor(t, r.server, nftables, p.profile(t), append(slices.Clone(p.flags), p.name)...))
		},
		"dash":    byScript(dash),
		"busybox": byScript(ash),
	}
}

// script makes portknock write a script for the part.
func (p part) script(t testing.TB, r *rig) script {
	t.Helper()
	return emitScript(t, r.server, nftables, p.profile(t), append(slices.Clone(p.flags), p.name)...)
}

// newPartsRig makes a rig whose server listens on port 22 and on the port of each part.
func newPartsRig(t testing.TB, family lab.Family, parts []part) *rig {
	t.Helper()
	r := newListeningRig(t, nftables, family)
	for _, p := range parts {
		r.server.Listen(t, p.port)
	}
	return r
}

// expectParts checks that the sequence of each part opens the ports of this part and no
// others.
func (r *rig) expectParts(t testing.TB, parts []part) {
	t.Helper()
	for i, p := range parts {
		from := r.freshAddr()
		r.client.KnockFrom(t, from, r.addr(), p.steps...)
		r.expectAnswer(t, "after the knocks of "+p.name, from, 22, lab.Open)
		for j, other := range parts {
			if j == i {
				r.expectAnswer(t, "after the knocks of "+p.name, from, p.port, lab.Open)
			} else if j == (i+1)%len(parts) { // one other part is enough
				r.expectAnswer(t, "after the knocks of "+p.name, from, other.port, lab.Dropped)
			}
		}
	}
	for _, p := range append([]part{{port: 22}}, parts...) {
		r.expectPort(t, r.attacker, p.port, lab.Dropped)
	}
}

// TestPartsLoadedOneByOne: two or ten profiles that are loaded one after another, in both
// orders, guard their ports together. Each sequence opens its profile's ports, and a scan
// of all ports opens none. The removal of one leaves the others in force.
func TestPartsLoadedOneByOne(t *testing.T) {
	t.Parallel()
	loaders := partLoaders(t)
	for _, n := range []int{2, 10} {
		for name, load := range loaders {
			if n == 10 && name == "busybox" {
				continue // slow
			}
			for _, backwards := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d/%s/backwards=%v", n, name, backwards), func(t *testing.T) {
					t.Parallel()
					parts := numberedParts(n)
					family := lab.IPv4
					if backwards {
						family = lab.IPv6
					}
					r := newPartsRig(t, family, parts)
					before := r.ruleset(t)
					order := slices.Clone(parts)
					if backwards {
						slices.Reverse(order)
					}
					for _, p := range order {
						load(t, r, p)
					}
					r.expectParts(t, parts)
					for _, transport := range []knock.Transport{knock.UDP, knock.TCP} {
						r.attacker.Sweep(t, r.addr(), transport, lab.Ascending)
						r.expect(t, r.attacker, lab.Dropped)
					}
					for i, p := range order {
						p.script(t, r).run(t, "unload")
						r.expectPort(t, r.attacker, p.port, lab.Open)
						if listing := r.ruleset(t); regexp.MustCompile(`_` + p.name + `\b`).MatchString(listing) {
							t.Errorf("the unload of %s leaves\n%s", p.name, listing)
						}
						if i == 0 {
							r.expectParts(t, order[1:])
						}
					}
					r.expect(t, r.attacker, lab.Open)
					r.expectRuleset(t, before)
				})
			}
		}
	}
}

// TestPartsWithSimilarNames: profiles do not interfere whose names are alike, or like the
// names of other objects in the table.
func TestPartsWithSimilarNames(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		parts := numberedParts(6)
		for i, name := range []string{"b", "a_b", "let_b", "trial", "begin", "used"} {
			parts[i].name = name
		}
		r := newPartsRig(t, lab.IPv4, parts)
		for _, p := range parts {
			p.script(t, r).with(shell).run(t, "load")
		}
		for i, p := range parts {
			s := p.script(t, r).with(shell)
			s.run(t, "trial")
			r.expectParts(t, parts[i:])
			s.run(t, "cancel")
			r.expectParts(t, parts[i:])
			s.run(t, "trial")
			s.run(t, "keep", "--force")
			r.expectParts(t, parts[i:])
			s.run(t, "unload")
			r.expectPort(t, r.attacker, p.port, lab.Open)
			r.expectParts(t, parts[i+1:])
			if i == len(parts)-2 {
				break // the last one is all that is left
			}
		}
	})
}

// TestPartsKeepStateOfOthers: when one profile is replaced, tried or unloaded, the openings
// of the others, their addresses in mid-sequence and their used tokens stay.
func TestPartsKeepStateOfOthers(t *testing.T) {
	t.Parallel()
	for name, load := range partLoaders(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parts := numberedParts(3)
			r := newPartsRig(t, lab.IPv4, parts)
			for _, p := range parts {
				load(t, r, p)
			}
			settings, s := tokensOn(t, 9000)
			r.server.Listen(t, 9000)
			r.emitScript(t, lab.File(t, "config", append([]string{"Host token"}, settings...)...), "token").run(t, "load")
			tokens := r.familyTokens(t, s, time.Now())
			// One address has an opening of p0, the other one has used a token.
			open, spender := r.freshAddr(), r.freshAddr()
			r.client.KnockFrom(t, open, r.addr(), parts[0].steps...)
			r.client.KnockFrom(t, spender, r.addr(), tokens[0])
			changed := parts[1]
			changed.steps = sequence("4107/udp 4101/tcp 4119/udp")
			for _, step := range []struct {
				name string
				do   func()
			}{
				{"replace", func() { load(t, r, changed) }},
				{"trial", func() { parts[1].script(t, r).run(t, "trial", "1"); r.awaitTrialEnd(t) }},
				{"cancel", func() { parts[1].script(t, r).run(t, "cancel") }},
				{"keep", func() { parts[1].script(t, r).run(t, "trial"); parts[1].script(t, r).run(t, "keep", "--force") }},
				{"unload", func() { parts[1].script(t, r).run(t, "unload") }},
				{"load", func() { load(t, r, parts[1]) }},
			} {
				middle := r.freshAddr()
				r.client.KnockFrom(t, middle, r.addr(), parts[0].steps[0])
				step.do()
				r.client.KnockFrom(t, middle, r.addr(), parts[0].steps[1])
				r.expectAnswer(t, step.name+": an address in mid-sequence", middle, parts[0].port, lab.Open)
				r.expectAnswer(t, step.name+": an admitted address", open, parts[0].port, lab.Open)
				r.expectAnswer(t, step.name+": an admitted address", open, 22, lab.Open)
				r.expectAnswer(t, step.name+": the address of a token", spender, 9000, lab.Open)
				again := r.freshAddr()
				r.client.KnockFrom(t, again, r.addr(), tokens[0])
				r.expectAnswer(t, step.name+": a used token from another address", again, 9000, lab.Dropped)
			}
			r.expectParts(t, parts)
		})
	}
}

// TestPartsUniteDropPolicies: the drop policy stays while any profile has it, and the
// allowed ports of two profiles with the drop policy are all open.
func TestPartsUniteDropPolicies(t *testing.T) {
	t.Parallel()
	for name, load := range partLoaders(t) {
		for _, backwards := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/backwards=%v", name, backwards), func(t *testing.T) {
				t.Parallel()
				parts := numberedParts(3)
				parts[0].flags = []string{"--policy=drop", "--allow=9001"}
				parts[1].flags = []string{"--policy=drop", "--allow=9002"}
				r := newPartsRig(t, lab.IPv4, parts)
				for _, port := range []uint16{9001, 9002, 9003} {
					r.server.Listen(t, port)
				}
				allowed := func(when string, want ...lab.State) {
					t.Helper()
					for i, state := range want {
						port := uint16(9001 + i)
						if got := r.client.Probe(t, r.port(port)); got != state {
							t.Errorf("%s: port %d is %v, want %v", when, port, got, state)
						}
					}
				}
				order := slices.Clone(parts)
				if backwards {
					slices.Reverse(order)
				}
				for _, p := range order {
					load(t, r, p)
				}
				allowed("loaded", lab.Open, lab.Open, lab.Dropped)
				r.expectParts(t, parts)
				load(t, r, parts[2])
				allowed("after another load of the profile without a policy", lab.Open, lab.Open, lab.Dropped)
				changed := parts[0]
				changed.flags = nil
				changed.script(t, r).run(t, "trial")
				allowed("during a trial of p0 without a policy", lab.Dropped, lab.Open, lab.Dropped)
				r.expectParts(t, parts)
				changed.script(t, r).run(t, "cancel")
				allowed("after the trial", lab.Open, lab.Open, lab.Dropped)
				parts[1].script(t, r).run(t, "unload")
				allowed("after the unload of p1", lab.Open, lab.Dropped, lab.Dropped)
				load(t, r, changed)
				allowed("after a load of p0 without a policy", lab.Open, lab.Open, lab.Open)
				r.expectParts(t, []part{parts[0], parts[2]})
				load(t, r, parts[0])
				allowed("after a load of p0 with its policy", lab.Open, lab.Dropped, lab.Dropped)
				parts[2].script(t, r).run(t, "unload")
				parts[0].script(t, r).run(t, "unload")
				allowed("after all unloads", lab.Open, lab.Open, lab.Open)
			})
		}
	}
}

// TestPartsWithOwnKeysShareAPort: two profiles with keys of their own guard one port. An
// address that either profile admits may connect. A token stays used when its profile is
// loaded again, on trial, under another name or with another horizon.
func TestPartsWithOwnKeysShareAPort(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		r := newListeningRig(t, nftables, lab.IPv4)
		settings, s := tokens(t, periodWithNowAt(t, middle), time.Minute)
		emit := func(name, horizon string, more ...string) script {
			t.Helper()
			lines := append(append([]string{"Host " + name, "OpenFor 3s"}, settings...), more...)
			return r.emitScript(t, lab.File(t, "config", lines...), "--horizon", horizon, name).with(shell)
		}
		keys := []knock.Key{s.Key, s.Key.Derive("user1")}
		valid := make([][]knock.Step, len(keys))
		scripts := make([]script, len(keys))
		for i, key := range keys {
			s.Key = key
			valid[i] = stepsAt(t, s, time.Now())
			scripts[i] = emit(fmt.Sprint("user", i), "1h", "DeriveHostKey "+[]string{"no", "yes"}[i])
			scripts[i].run(t, "load")
		}
		type use struct {
			token knock.Step
			by    netip.Addr
		}
		var used []use
		for i := range keys {
			from := r.freshAddr()
			if !r.admits(t, from, valid[i][0]) {
				t.Fatalf("a token of profile %d does not open port 22", i)
			}
			used = append(used, use{valid[i][0], from})
		}
		next := 1
		check := func(when string) {
			t.Helper()
			for i, u := range used {
				if r.admits(t, r.freshAddr(), u.token) {
					t.Errorf("%s: used token %d opens port 22 for another address", when, i)
				}
			}
			if !r.admits(t, used[0].by, used[0].token) {
				t.Errorf("%s: a token does not open port 22 for the address that used it", when)
			}
			from := r.freshAddr()
			if !r.admits(t, from, valid[0][next]) {
				t.Errorf("%s: a fresh token does not open port 22", when)
			}
			used = append(used, use{valid[0][next], from})
			next++
		}
		check("loaded")
		later := emit("user0", "3h")
		later.run(t, "trial")
		check("on trial with a later end")
		later.run(t, "keep")
		check("kept with a later end")
		renamed := emit("renamed", "2h")
		renamed.run(t, "load")
		check("loaded under another name too")
		later.run(t, "unload")
		check("renamed")
		scripts[1].run(t, "unload")
		if r.admits(t, r.freshAddr(), valid[1][1]) {
			t.Error("a token of an unloaded profile opens port 22")
		}
	})
}

// TestPartsLogInThroughEach: ssh logs in through each of two profiles on one port, with
// profiles of two users who do not know each other's sequence.
func TestPartsLogInThroughEach(t *testing.T) {
	t.Parallel()
	r := newRig(t, nftables, lab.IPv4, threeKnocks)
	r.emitScript(t, r.profile).run(t, "load")
	second := lab.File(t, "config", "Host second", "Sequence 1000/udp 2000/tcp", "HostName "+r.addr().String())
	r.emitScript(t, second, "second").run(t, "load")
	r.login(t)
	r.emitScript(t, r.profile).run(t, "unload") // the opening of vps ends with its rules
	r.expect(t, r.client, lab.Dropped)
	r.config = r.proxyConfig(t, "portknock -c "+second+" --profile second %h %p")
	r.login(t)
	r.expect(t, r.attacker, lab.Dropped)
}

// TestPlainDropOfOnePart: the plain drop of a part, whose rules cannot be loaded, lets pass
// what other parts and a trial let through. It stays when other parts go.
func TestPlainDropOfOnePart(t *testing.T) {
	eachShell(t, func(t *testing.T, shell []string) {
		parts := numberedParts(2)
		r := newPartsRig(t, lab.IPv4, parts)
		closed, other := parts[0].script(t, r).with(shell), parts[1].script(t, r).with(shell)
		expect := func(when string, port uint16, want lab.State) {
			t.Helper()
			if got := r.attacker.Probe(t, r.port(port)); got != want {
				t.Errorf("%s: port %d is %v, want %v", when, port, got, want)
			}
		}
		closed.call(t, "fw_close", parts[0].name)
		expect("after the plain drop", parts[0].port, lab.Dropped)
		other.run(t, "load")
		expect("after the load of another part", parts[0].port, lab.Dropped)
		from := r.freshAddr()
		r.client.KnockFrom(t, from, r.addr(), parts[1].steps...)
		r.expectAnswer(t, "after the knocks of another part", from, 22, lab.Open)
		r.expectAnswer(t, "after the knocks of another part", from, parts[0].port, lab.Dropped)
		other.run(t, "unload")
		expect("after the unload of the other part", parts[0].port, lab.Dropped)
		closed.run(t, "cancel")
		expect("after cancel", parts[0].port, lab.Dropped)

		closed.run(t, "trial")
		from = r.freshAddr()
		r.client.KnockFrom(t, from, r.addr(), parts[0].steps...)
		r.expectAnswer(t, "after the knocks during a trial", from, parts[0].port, lab.Open)
		closed.run(t, "cancel")
		expect("after a trial", parts[0].port, lab.Dropped)
		closed.run(t, "load")
		from = r.freshAddr()
		r.client.KnockFrom(t, from, r.addr(), parts[0].steps...)
		r.expectAnswer(t, "after the knocks", from, parts[0].port, lab.Open)
		closed.run(t, "unload")
		expect("after unload", parts[0].port, lab.Open)
		if tables := r.server.Run(t, "nft", "list", "tables"); tables != "" {
			t.Errorf("unload leaves %s", tables)
		}
	})
}
