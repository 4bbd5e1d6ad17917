package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// runLabHost runs this process as a host if the lab started it as one, and then never
// returns. main and TestMain call runLabHost first.
func runLabHost() { lab.Main() }

const oneWay = 20 * time.Millisecond

// The sequential grids are measured one after the other, because milliseconds count in
// them.
var (
	cleanNftables = grid{
		link:   "clean",
		wan:    lab.WAN{Delay: oneWay},
		server: nftables,
		contestants: []contestant{ncOpen, portknock3, portknock10, token, repeated3, repeated10, repeatedToken,
			ncatOpen, socatOpen, knockNC, shellNC},
	}
	cleanKnockd = grid{
		link:        "clean",
		wan:         lab.WAN{Delay: oneWay},
		server:      knockd,
		contestants: []contestant{portknock3, knockNC, shellNC},
	}
	cleanFwknopd = grid{
		link:        "clean",
		wan:         lab.WAN{Delay: oneWay},
		server:      fwknopd,
		contestants: []contestant{portknockSPA, fwknopNC},
	}
	blackHoled = grid{
		link:        "IPv6 black-holed",
		wan:         lab.WAN{Delay: oneWay},
		server:      nftables,
		contestants: []contestant{portknockBoth, portknockIPv4},
		prepare:     blackHole,
	}
	steered = grid{
		link:        "receive-steered",
		wan:         lab.WAN{Delay: oneWay},
		server:      nftables,
		contestants: []contestant{ncOpen, portknock3, portknock10, token, notNeeded(knockNC)},
		prepare:     steer,
	}
	noDelay = grid{
		link:        "none",
		server:      nftables,
		contestants: []contestant{ncOpen, portknock3, ncatOpen, socatOpen},
	}
	sequentialGrids = []grid{cleanNftables, cleanKnockd, cleanFwknopd, blackHoled, steered, noDelay}
)

// The parallel grids are measured a few at a time, because a run in them mostly waits.
var (
	loss5 = grid{
		link:        "loss 5 %",
		wan:         lab.WAN{Delay: oneWay, Loss: .05, Seed: 1},
		server:      nftables,
		contestants: []contestant{ncOpen, portknock3, portknock10, token, repeated3, repeated10, repeatedToken, knockNC},
	}
	loss20 = grid{
		link:        "loss 20 %",
		wan:         lab.WAN{Delay: oneWay, Loss: .20, Seed: 2},
		server:      nftables,
		contestants: []contestant{ncOpen, portknock3, repeated3, repeated10, repeatedToken, notNeeded(knockNC)},
	}
	bursts1   = lossInBursts(time.Millisecond, 9)
	bursts5   = lossInBursts(5*time.Millisecond, 10)
	bursts20  = lossInBursts(20*time.Millisecond, 11)
	reordered = grid{
		link:        "reordered 20 %",
		wan:         lab.WAN{Delay: oneWay, Reorder: .20, ReorderBy: 5 * time.Millisecond, Seed: 3},
		server:      nftables,
		contestants: []contestant{ncOpen, portknock3, portknock10, token, repeated3, notNeeded(knockNC)},
	}
	duplicated = grid{
		link:        "duplicated 10 %",
		wan:         lab.WAN{Delay: oneWay, Duplicate: .10, Seed: 4},
		server:      nftables,
		contestants: []contestant{ncOpen, portknock3, portknock10, token, notNeeded(knockNC)},
	}
	slow = grid{
		link:        "slow, 300 ms",
		wan:         lab.WAN{Delay: 150 * time.Millisecond},
		server:      nftables,
		contestants: []contestant{ncOpen, portknock3, notNeeded(knockNC)},
	}
	jittery = grid{
		link:        "jitter 20 ms",
		wan:         lab.WAN{Delay: oneWay, Jitter: oneWay, Seed: 5},
		server:      nftables,
		contestants: []contestant{ncOpen, portknock3, notNeeded(knockNC)},
	}
	loss5Knockd = grid{
		link:        "loss 5 %",
		wan:         lab.WAN{Delay: oneWay, Loss: .05, Seed: 6},
		server:      knockd,
		contestants: []contestant{portknock3, notNeeded(knockNC)},
	}
	loss5Fwknopd = grid{
		link:        "loss 5 %",
		wan:         lab.WAN{Delay: oneWay, Loss: .05, Seed: 7},
		server:      fwknopd,
		contestants: []contestant{portknockSPA, fwknopNC},
	}
	parallelGrids = []grid{loss5, loss20, bursts1, bursts5, bursts20, reordered, duplicated, slow, jittery, loss5Knockd, loss5Fwknopd}
)

// lossInBursts returns a grid for a link that loses packets for periods of this mean length.
func lossInBursts(mean time.Duration, seed uint64) grid {
	return grid{
		link:        fmt.Sprintf("loss 5 %%, bursts of %v", mean),
		wan:         lab.WAN{Delay: oneWay, Loss: .05, Burst: mean, Seed: seed},
		server:      nftables,
		contestants: []contestant{ncOpen, portknock3, portknock10, token, repeated3, repeated10, repeatedToken},
	}
}

// parallelLimit is how many of the parallel grids are measured at a time.
const parallelLimit = 3

// notNeeded returns c without its needed flag, so that the contestant drops out if it is
// slow.
func notNeeded(c contestant) contestant {
	c.needed = false
	return c
}

// blackHole makes the server drop all IPv6 packets. It also gives the server a name with
// an address of each family.
func blackHole(t *tb, r *rig) {
	r.server.Run(t, "nft", "add table ip6 hole; add chain ip6 hole c { type filter hook prerouting priority -400; policy drop; }")
	hosts := lab.File(t, "hosts", r.server.Addr(lab.IPv6).String()+" "+twoFamilies, r.addr+" "+twoFamilies)
	r.client.Run(t, "mount", "--bind", hosts, "/etc/hosts")
}

// steer makes the server distribute the packets that it receives over its processors.
// Packets of two flows may then overtake each other. KnockDelay exists for such servers.
func steer(t *tb, r *rig) {
	r.server.Shell(t, "printf %x $(( (1 << $(nproc)) - 1 )) >/sys/class/net/eth0/queues/rx-0/rps_cpus")
}

// measure measures everything that the options select, and compares it with the targets.
func measure(ctx context.Context, o *options) (*Report, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("root is required, to create network namespaces")
	}
	// sudo may remove these folders of an administrator's programs from PATH.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return nil, err
	}
	r := &Report{Machine: thisMachine(), Runs: o.runs}
	err := guarded(func(t *tb) error {
		if err := build(ctx, t, o); err != nil {
			return err
		}
		for _, g := range sequentialGrids {
			if err := r.addCells(g.cells(ctx, o)); err != nil {
				return err
			}
		}
		if err := r.measureParallel(ctx, o); err != nil {
			return err
		}
		if o.only != nil {
			for _, g := range loadGrids() {
				if err := r.addCells(g.cells(ctx, o)); err != nil {
					return err
				}
			}
		}
		return r.costs(ctx, o)
	})
	if err != nil && ctx.Err() == nil {
		return nil, err
	}
	if err != nil { // the measurements so far are worth a report
		r.Missing = append(r.Missing, "everything that no table lists: "+err.Error())
	}
	r.judge()
	return r, nil
}

func (r *Report) addCells(cells []Cell, missing []string, err error) error {
	r.Cells, r.Missing = append(r.Cells, cells...), append(r.Missing, missing...)
	return err
}

// measureParallel measures the parallel grids, some at a time, and reports them in order.
func (r *Report) measureParallel(ctx context.Context, o *options) error {
	type result struct {
		cells   []Cell
		missing []string
		err     error
	}
	results := make([]result, len(parallelGrids))
	var all sync.WaitGroup
	slots := make(chan struct{}, parallelLimit)
	for i, g := range parallelGrids {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			s := &results[i]
			s.cells, s.missing, s.err = g.cells(ctx, o)
		})
	}
	all.Wait()
	var failed error
	for _, s := range results {
		if err := r.addCells(s.cells, s.missing, s.err); err != nil {
			failed = err
		}
	}
	return failed
}

// build builds the program as a release contains it, unless --portknock gives a program.
func build(ctx context.Context, t *tb, o *options) error {
	if o.portknock != "" {
		path, err := filepath.Abs(o.portknock)
		if err == nil {
			_, err = os.Stat(path)
		}
		o.portknock = path
		return err
	}
	o.portknock = filepath.Join(t.TempDir(), "portknock")
	c := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", o.portknock,
		"github.com/portknock/portknock/cmd/portknock")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}
