package main

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// manyProfiles lists how many profiles the strangers part loads, and how many knocks each
// of them has. The first one is the yardstick for the others.
var manyProfiles = []struct{ profiles, knocks int }{{1, 3}, {10, 5}, {20, 10}, {50, 10}}

// figureStranger is the name of the figure for one packet of an address that has not
// begun any sequence.
func figureStranger(firewall string, profiles, knocks int) string {
	return fmt.Sprintf("a stranger's packet, %s, %d x %d", firewall, profiles, knocks)
}

// strangerRatio returns how much more a stranger's packet costs with many profiles than with
// one of three knocks, or NaN.
func (r *Report) strangerRatio(firewall string, profiles, knocks int) float64 {
	one := manyProfiles[0]
	return r.figure(figureStranger(firewall, profiles, knocks)) / r.figure(figureStranger(firewall, one.profiles, one.knocks))
}

// strangers measures what a packet of an address that has not begun any sequence costs a
// server with many profiles.
func (r *Report) strangers(ctx context.Context, o *options) error {
	sweeps, packets := 15, 5000
	if o.quick {
		sweeps, packets = 1, 500
	}
	return guarded(func(t *tb) error {
		type target struct {
			figure         string
			client, server *lab.Host
			best           float64
		}
		newTarget := func(figure string) *target {
			n := &target{figure, lab.NewHost(t, "client"), lab.NewHost(t, "server"), 1e9}
			lab.Link(t, n.client, n.server)
			return n
		}
		targets := []*target{newTarget("a stranger's packet, no rules")}
		for _, f := range lab.Firewalls {
			if f.Async || !installed(f.Programs) { // a daemon reads the packets of knockd
				continue
			}
			format, _, _ := strings.Cut(f.Name, "-")
			for _, many := range manyProfiles {
				n := newTarget(figureStranger(f.Name, many.profiles, many.knocks))
				f.Install(t, n.server)
				var settings, names []string
				for i := range many.profiles {
					names = append(names, fmt.Sprint("user", i))
					sequence := "Sequence"
					for k := range many.knocks {
						sequence += fmt.Sprintf(" %d/udp", 20000+100*i+7*k)
					}
					settings = append(settings, "Host "+names[i], sequence)
				}
				file := filepath.Join(t.TempDir(), "rules")
				n.server.Run(t, o.portknock, append([]string{"emit-rules", "-c", lab.File(t, "config", settings...),
					"--format", format, "--output", file}, names...)...)
				n.server.Shell(t, lab.RulesLine(t, file, "load"))
				targets = append(targets, n)
			}
		}
		// The rules handle a packet while the packet is sent, on the same processor. The servers
		// take turns, and the best sweep of each counts.
		for range sweeps {
			for _, n := range targets {
				to := n.server.Addr(lab.IPv4)
				began := time.Now()
				n.client.Flood(t, packets, func(i int) lab.Packet {
					return lab.Packet{Dst: netip.AddrPortFrom(to, uint16(1+7919*i%65535))}
				})
				n.best = min(n.best, float64(time.Since(began).Nanoseconds())/1e3/float64(packets))
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
		}
		for _, n := range targets {
			r.addFigure(n.figure, n.best, "µs")
		}
		for _, f := range lab.Firewalls {
			for _, many := range manyProfiles[1:] {
				if ratio := r.strangerRatio(f.Name, many.profiles, many.knocks); !math.IsNaN(ratio) {
					r.addFigure(figureStranger(f.Name, many.profiles, many.knocks)+", relative to 1 x 3", ratio, "")
				}
			}
		}
		return nil
	})
}
