package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portknock/portknock/knock"
)

// This file scans a host as an attacker would.

// scanPause is the time from one SYN of a scan to the next one at the same address. A scan of all
// ports takes about two minutes.
const scanPause = 2 * time.Millisecond

// scanPorts returns the ports that --outside names.
func (c *checkHost) scanPorts() ([]knock.PortRange, error) {
	if c.outside == "" {
		return nil, nil
	}
	ranges, err := knock.ParsePortRanges(c.outside)
	if err != nil {
		return nil, usageError("--outside: %w", err)
	}
	if slices.ContainsFunc(ranges, func(r knock.PortRange) bool { return r.Transport != knock.TCP }) {
		return nil, usageError("--outside scans only TCP ports")
	}
	return ranges, nil
}

// scan says which ports of each target answer.
func (c *checkHost) scan(ctx context.Context, ranges []knock.PortRange) {
	if len(ranges) == 0 {
		return
	}
	c.app.log.say(always, "warning: --outside is a port scan; scan only hosts that you may scan")
	e, began := &c.found, time.Now()
	results := make([]map[uint16]portState, len(e.targets))
	var wait sync.WaitGroup
	for i := range e.targets {
		if t := &e.targets[i]; !t.noRoute {
			wait.Go(func() { results[i] = t.scan(ctx, ranges) })
		}
	}
	wait.Wait()
	if ctx.Err() != nil {
		return
	}
	for i := range e.targets {
		t := &e.targets[i]
		var open []uint16
		counts := map[portState]int{}
		for port, state := range results[i] {
			counts[state]++
			if state == portOpen && port != e.port {
				open = append(open, port)
			}
		}
		if results[i] == nil {
			continue
		}
		slices.Sort(open)
		e.sshPorts = append(e.sshPorts, t.tryOthers(ctx, open)...)
		c.step(isNote, "outside", time.Since(began), "%v: %d open, %d refused, %d rejected, %d silent", t.addr,
			counts[portOpen], counts[portRefused], counts[portRejected], counts[portSilent])
		for ports := range slices.Chunk(open, 10) {
			var words []string
			for _, port := range ports {
				word := strconv.Itoa(int(port))
				if slices.Contains(e.sshPorts, port) {
					word += " (sshd)"
				}
				words = append(words, word)
			}
			c.step(isNote, "outside", 0, "%v: open: %s", t.addr, strings.Join(words, " "))
		}
	}
}

// scan sends one SYN to each port in the ranges.
func (t *target) scan(ctx context.Context, ranges []knock.PortRange) map[uint16]portState {
	states := map[uint16]portState{}
	var mu sync.Mutex
	var wait sync.WaitGroup
	pace := time.NewTicker(scanPause)
	defer pace.Stop()
	for _, r := range ranges {
		for port := int(r.First); port <= int(r.Last) && ctx.Err() == nil; port++ {
			<-pace.C
			wait.Go(func() {
				state := t.state(ctx, uint16(port))
				mu.Lock()
				defer mu.Unlock()
				states[uint16(port)] = state
			})
		}
	}
	wait.Wait()
	return states
}
