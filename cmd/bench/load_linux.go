package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// loadGrids returns the grids in which clients share a server with many others. bench
// measures them only if --only selects them, because they take minutes.
func loadGrids() []grid {
	clean := lab.WAN{Delay: oneWay}
	rough := lab.WAN{Delay: oneWay, Jitter: oneWay, Reorder: .20, ReorderBy: 5 * time.Millisecond, Seed: 8}
	three, ten, other := bound(portknock3), bound(portknock10), bound(portknock(", 3 other knocks", "other", otherPort))
	thousand, pair := crowd{clients: 1000}, crowd{clients: 1, shared: true, repeat: true}
	grids := []grid{{link: "load: 1,000 addresses", wan: clean, server: unguarded, contestants: []contestant{ncBound}, run: thousand.run}}
	for _, s := range []server{loadServer(lab.Firewalls[0], "nftables"), loadServer(lab.Firewalls[1], "iptables")} {
		add := func(name string, wan lab.WAN, run runner, contestants ...contestant) {
			grids = append(grids, grid{link: "load: " + name, wan: wan, server: s, contestants: contestants, run: run})
		}
		add("none", clean, nil, portknock3, portknock10)
		add("none, jitter", rough, nil, portknock3, portknock10)
		add("1,000 addresses", clean, thousand.run, three)
		add("1,000 addresses, jitter", rough, thousand.run, three)
		add("1,000 addresses, outage of 2 s", clean, crowd{clients: 1000, outage: 2 * time.Second}.run, three)
		add("50 clients of one address", clean, crowd{clients: 50, shared: true}.run, three)
		add("two profiles, 3 and 3 knocks", clean, pair.run, three, other)
		add("two profiles, 3 and 3 knocks, jitter", rough, pair.run, three, other)
		add("two profiles, 3 and 10 knocks", clean, pair.run, three, ten)
		add("two profiles, 3 and 10 knocks, jitter", rough, pair.run, three, ten)
		add("forged random packets", clean, flood{floodRate, randomPacket}.run, three)
		add("forged first knocks", clean, flood{floodRate, firstKnock}.run, three)
		add("forged first knocks, 5,000/s", clean, flood{5000, firstKnock}.run, three)
		add("forged sequences", clean, flood{floodRate, wholeSequence}.run, three)
		add("forged wrong knocks, 1,000/s for each client", clean, flood{1000 * floodLogins, wrongKnock}.run, three)
		add("forged wrong knocks, 100/s for each client", clean, flood{100 * floodLogins, wrongKnock}.run, three)
	}
	return grids
}

// loadServer returns a server with a firewall of the lab and one more profile.
func loadServer(f lab.Firewall, format string) server {
	// The rig drops packets with nft, and the outage of a crowd needs nft.
	return server{f.Name, append([]string{"nft"}, f.Programs...), func(t *tb, r *rig) {
		f.Install(t, r.server)
		r.load(t, format, "other")
	}}
}

// bound returns c with the address from as its source address.
func bound(c contestant) contestant {
	return withOption(c, func(from netip.Addr) string { return "BindAddress=" + from.String() })
}

// ncBound is ncOpen with the address from as its source address.
var ncBound = func() contestant {
	c := ncOpen
	c.argv = func(r *rig, from netip.Addr) []string {
		return []string{"nc", "-s", from.String(), r.addr, strconv.Itoa(openPort)}
	}
	return c
}()

// login is a run of a contestant that goes on while others begin.
type login struct {
	cell *Cell
	p    *process
	took time.Duration
	err  error
}

// logins are runs that go on at the same time.
type logins struct {
	list []*login
	all  sync.WaitGroup
}

// add adds a process to the runs of a cell.
func (l *logins) add(cell *Cell, p *process) *login {
	one := &login{cell: cell, p: p}
	l.list = append(l.list, one)
	return one
}

// await waits in the background until the process prints a banner, and ends the process.
func (l *logins) await(one *login) {
	l.all.Go(func() {
		one.took, one.err = one.p.banner(runLimit)
		one.p.end()
	})
}

// end waits for all runs, and adds their results to the cells.
func (l *logins) end() {
	l.all.Wait()
	for _, one := range l.list {
		one.cell.Runs++
		if one.err != nil {
			one.cell.Failures = append(one.cell.Failures, one.err.Error())
			continue
		}
		one.cell.Times = append(one.cell.Times, milliseconds(one.took))
	}
}

// crowd is a number of clients of each contestant that start at the same moment.
type crowd struct {
	clients int
	shared  bool          // all clients have one address; else each has an address of its own
	repeat  bool          // the crowd starts once for each run of --runs
	outage  time.Duration // how long the server receives no packets after the last client has started
}

// crowdPause is the time from one start of a crowd to the next.
const crowdPause = 200 * time.Millisecond

// run starts the crowd. Each client takes a share of the processors, so a large crowd takes
// long on a small machine. Compare with the crowd of nc.
func (c crowd) run(ctx context.Context, t *tb, o *options, r *rig, selected []contestant, cells []Cell) error {
	rounds := 1
	if c.repeat {
		rounds = o.runs
	}
	if o.quick {
		c.clients = min(c.clients, 10)
	}
	var all logins
	defer all.end()
	for range rounds {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		next := time.Now().Add(crowdPause)
		// The processes are shells that wait for a line, and then become the contestants.
		// Otherwise the first client would be done before the last one starts.
		var held []*login
		for n := range c.clients {
			for i := range selected {
				if n == 0 && i == 0 || !c.shared {
					r.sources++
				}
				argv := selected[i].argv(r, r.client.Source(lab.IPv4, r.sources))
				p, err := start(r.client, append([]string{"sh", "-c", `read go && exec "$0" "$@"`}, argv...))
				if err != nil {
					return err
				}
				held = append(held, all.add(&cells[i], p))
			}
		}
		if c.outage > 0 {
			r.server.Run(t, "nft", "add table inet outage; add chain inet outage c { type filter hook prerouting priority -400; policy drop; }")
		}
		time.Sleep(crowdPause / 10) // until the shells wait
		for _, one := range held {
			one.p.began = time.Now()
			if _, err := one.p.in.WriteString("go\n" + banner); err != nil {
				return err
			}
		}
		for _, one := range held {
			all.await(one)
		}
		if c.outage > 0 {
			time.Sleep(c.outage)
			r.server.Run(t, "nft", "delete table inet outage")
		}
		time.Sleep(time.Until(next))
	}
	return nil
}

// flood is a flood of forged packets, during which clients log in.
type flood struct {
	rate   int // packets per second
	packet func(r *rig, i int) lab.Packet
}

const (
	floodRate   = 20_000 // packets per second of most floods
	floodLogins = 20     // number of clients that log in during a flood
)

// run floods the server, and starts the clients when the flood has filled all lists of
// addresses. The flood goes on until the last client has given up.
func (f flood) run(ctx context.Context, t *tb, o *options, r *rig, selected []contestant, cells []Cell) error {
	first, between, after, count := 11*time.Second, 150*time.Millisecond, 9*time.Second, floodLogins
	if o.quick {
		first, after, count = 100*time.Millisecond, time.Second, 1
	}
	span := first + time.Duration(count)*between + after
	// Without a route to the forged addresses, the server might drop their packets.
	r.server.Run(t, "ip", "route", "add", forgedPrefix.String(), "via", r.client.Addr(lab.IPv4).String())
	var all logins
	defer all.end()
	ended := make(chan error, 1)
	before, began := r.received(t), time.Now()
	go func() {
		ended <- guarded(func(t *tb) error {
			r.client.Flood(t, int(span.Seconds()*float64(f.rate)), func(i int) lab.Packet {
				if i%20 == 0 {
					time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(f.rate))))
				}
				return f.packet(r, i)
			})
			return nil
		})
	}()
	for n := range count {
		time.Sleep(time.Until(began.Add(first + time.Duration(n)*between)))
		p, err := start(r.client, selected[0].argv(r, r.floodedClient(n)))
		if err != nil {
			return err
		}
		if _, err := p.in.WriteString(banner); err != nil {
			return err
		}
		all.await(all.add(&cells[0], p))
	}
	if err := <-ended; err != nil {
		return err
	}
	if arrived := float64(r.received(t)-before) / time.Since(began).Seconds(); arrived < 0.9*float64(f.rate) {
		return fmt.Errorf("only %.0f packets arrived in a second, of %d", arrived, f.rate)
	}
	return context.Cause(ctx)
}

// received returns how many packets the server has received.
func (r *rig) received(t *tb) int {
	n, err := strconv.Atoi(strings.TrimSpace(r.server.Run(t, "cat", "/sys/class/net/eth0/statistics/rx_packets")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// floodedClient returns the address of the nth client that logs in during a flood.
func (r *rig) floodedClient(n int) netip.Addr { return r.client.Source(lab.IPv4, uint16(n+1)) }

// forgedPrefix contains the sources of forged packets, except for those in the name of a
// client.
var forgedPrefix = netip.MustParsePrefix("10.128.0.0/9")

// forgedKnock returns a knock from the nth address of forgedPrefix.
func forgedKnock(r *rig, n int, s knock.Step) lab.Packet {
	b := forgedPrefix.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|uint32(n)&(1<<23-1))
	return r.knockFrom(netip.AddrFrom4(b), s)
}

// knockFrom returns a knock from any address.
func (r *rig) knockFrom(from netip.Addr, s knock.Step) lab.Packet {
	return lab.KnockPacket(netip.AddrPortFrom(from, 10000), r.server.Addr(lab.IPv4), s)
}

// randomPacket returns a knock from any address to any port.
func randomPacket(r *rig, _ int) lab.Packet {
	transports := []knock.Transport{knock.TCP, knock.UDP}
	return forgedKnock(r, rand.Int(), knock.Step{Transport: transports[rand.IntN(2)], Port: uint16(1 + rand.IntN(65535))})
}

// firstKnock returns the first right knock, each time from another address.
func firstKnock(r *rig, i int) lab.Packet { return forgedKnock(r, i, rightKnock(0)) }

// wholeSequence returns the right knocks in turn. Each sequence comes from another address.
func wholeSequence(r *rig, i int) lab.Packet {
	return forgedKnock(r, i/len(sequence), rightKnock(i%len(sequence)))
}

// wrongKnock returns a wrong knock from the address of one of the clients, in turn.
func wrongKnock(r *rig, i int) lab.Packet {
	return r.knockFrom(r.floodedClient(i%floodLogins), knock.Step{Transport: knock.UDP, Port: uint16(10000 + i%1000)})
}

// rightKnock returns a knock of the sequence.
func rightKnock(i int) knock.Step {
	s, err := knock.ParseSequence(sequence[i])
	if err != nil {
		panic(err)
	}
	return s[0]
}
