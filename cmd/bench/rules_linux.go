package main

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// rules measures what the rules for a year of hourly windows cost a server: to write, to
// load, and for each packet of a scanner.
func (r *Report) rules(ctx context.Context, o *options) error {
	sweeps := 5
	if o.quick {
		sweeps = 1
	}
	return guarded(func(t *tb) error {
		hosts := newDirectRig(t, o.portknock)
		key := lab.File(t, "key", knock.NewKey().Reveal())
		profile := lab.File(t, "config", "Host vps", "Scheme rotating", "KeyFile "+key)
		file := filepath.Join(t.TempDir(), "rules")
		load := func(horizon string) {
			hosts.server.Run(t, o.portknock, "emit-rules", "-c", profile, "--horizon", horizon, "--output", file, "vps")
			hosts.server.Run(t, "nft", "-f", file)
		}
		var emit, loaded, memory []float64
		for range sweeps {
			began := time.Now()
			hosts.server.Run(t, o.portknock, "emit-rules", "-c", profile, "--horizon", "365d", "--output", file, "vps")
			emit = append(emit, time.Since(began).Seconds())
			c := hosts.server.Command("nft", "-f", file)
			began = time.Now()
			if out, err := c.CombinedOutput(); err != nil {
				return fmt.Errorf("nft: %w: %s", err, out)
			}
			loaded = append(loaded, time.Since(began).Seconds())
			memory = append(memory, float64(c.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)/1e3)
			hosts.server.Run(t, "nft", "delete table inet portknock")
		}
		r.addFigure(figureEmit, median(emit), "s")
		r.addFigure(figureLoad, median(loaded), "s")
		r.addFigure(figureLoadMemory, quantile(memory, 1), "MB")

		// The rules handle a packet while the packet is sent, on the same processor.
		// The three sets of rules take turns. The best sweep of each set counts.
		to := hosts.server.Addr(lab.IPv4)
		cost := [3]float64{1e9, 1e9, 1e9}
		for range sweeps {
			for i, rules := range []func(){
				func() {},
				func() { load("24h") },
				func() { load("365d") },
			} {
				rules()
				began := time.Now()
				hosts.client.Sweep(t, to, knock.UDP, lab.Random)
				cost[i] = min(cost[i], float64(time.Since(began).Microseconds())/65535)
				if i > 0 {
					hosts.server.Run(t, "nft", "delete table inet portknock")
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
		}
		r.addFigure("a scanner's packet, no rules", cost[0], "µs")
		r.addFigure(figureDay, cost[1], "µs")
		r.addFigure(figureYear, cost[2], "µs")
		return nil
	})
}
