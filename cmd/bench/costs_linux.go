package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// costs measures everything that does not belong to a cell: streams and single figures.
func (r *Report) costs(ctx context.Context, o *options) error {
	for _, part := range []struct {
		name string
		do   func(context.Context, *options) error
	}{
		{"stream", r.streams},
		{"start", r.startUp},
		{"keystroke", r.keystroke},
		{"loaded", r.loaded},
		{"stalled", r.stalled},
		{"crowd", r.crowd},
		{"rules", r.rules},
		{"strangers", r.strangers},
		{"guesses", r.guesses},
		{"size", r.size},
	} {
		if !o.wants(part.name) && part.name != "stream" { // streams checks each stream's name itself
			continue
		}
		if err := part.do(ctx, o); err != nil {
			r.Missing = append(r.Missing, fmt.Sprintf("%s: %v", part.name, err))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (r *Report) addFigure(name string, value float64, unit string) {
	r.Figures = append(r.Figures, Figure{name, value, unit})
}

// startUp measures how long a process that does nothing takes from its start to its end.
func (r *Report) startUp(ctx context.Context, o *options) error {
	return guarded(func(t *tb) error {
		h := lab.NewHost(t, "client")
		commands := [][]string{{o.portknock, "version"}, {"nc", "-h"}}
		var times [2][]float64
		for range max(o.runs, 5) {
			for i, argv := range commands {
				if ctx.Err() != nil || !installed(argv[:1]) {
					continue
				}
				c := h.Command(argv[0], argv[1:]...)
				began := time.Now()
				_ = c.Run() // some programs fail when asked for help
				times[i] = append(times[i], milliseconds(time.Since(began)))
			}
		}
		for i, name := range []string{"portknock version", "nc -h"} {
			if len(times[i]) > 0 {
				r.addFigure("run time of "+name, median(times[i]), "ms")
			}
		}
		return nil
	})
}

// keystroke measures how long a byte takes to the server and back to the terminal, on a
// link without delay. The contestants take turns, and each has one session.
func (r *Report) keystroke(ctx context.Context, o *options) error {
	keys := 2000
	if o.quick {
		keys = 20
	}
	return guarded(func(t *tb) error {
		hosts := newDirectRig(t, o.portknock)
		hosts.server.Serve(t, echoPort, func(c net.Conn) { _, _ = io.Copy(c, c) })
		var selected []contestant
		for _, c := range []contestant{ncTo(echoPort), portknockTo(echoPort)} {
			if installed(c.programs) {
				selected = append(selected, c)
			}
		}
		sessions, times := make([]*process, len(selected)), make([][]float64, len(selected))
		for i, c := range selected {
			p, err := start(hosts.client, c.argv(hosts, netip.Addr{}))
			if err != nil {
				return err
			}
			defer p.end()
			_ = p.out.SetReadDeadline(time.Now().Add(streamLimit))
			sessions[i] = p
		}
		key := make([]byte, 1)
		for n := range keys {
			for i, p := range sessions {
				time.Sleep(time.Millisecond) // between the keystrokes of a user, all processes fall asleep
				began := time.Now()
				_, err := p.in.Write(key)
				if err == nil {
					_, err = io.ReadFull(p.out, key)
				}
				if err != nil {
					return errors.Join(fmt.Errorf("%s: %w", selected[i].name, err), p.stderrError())
				}
				if n > 0 { // the first keystroke waits for the connection
					times[i] = append(times[i], float64(time.Since(began).Nanoseconds())/1000)
				}
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		for i, c := range selected {
			r.addFigure("a keystroke and its echo, "+c.name+", median", median(times[i]), "µs")
			r.addFigure("a keystroke and its echo, "+c.name+", p95", quantile(times[i], 0.95), "µs")
		}
		return nil
	})
}

// stalled measures the CPU use of a session whose reader has stopped. Such a session must
// not use CPU.
func (r *Report) stalled(ctx context.Context, o *options) error {
	span := 2 * time.Second
	if o.quick {
		span = 200 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return guarded(func(t *tb) error {
		hosts := newDirectRig(t, o.portknock)
		full := make(chan struct{})
		hosts.server.Serve(t, down.port, func(c net.Conn) {
			for err := error(nil); err == nil; {
				_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
				_, err = c.Write(make([]byte, 1<<20))
			}
			close(full) // all buffers are full, so the transfer has stopped
			<-ctx.Done()
		})
		p, err := start(hosts.client, portknockTo(down.port).argv(hosts, hosts.client.Addr(lab.IPv4)))
		if err != nil {
			return err
		}
		defer p.end()
		select {
		case <-full:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(runLimit):
			return fmt.Errorf("the client still reads, although its reader has stopped")
		}
		before, err := cpuTime(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		time.Sleep(span) // the measured time span
		after, err := cpuTime(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		r.addFigure(figureStalled, 100*float64(after-before)/float64(span), "%")
		return nil
	})
}

// crowd measures many clients that connect at once, from one address, through the rules
// of one server.
func (r *Report) crowd(ctx context.Context, o *options) error {
	size := crowdSize
	if o.quick {
		size = 10
	}
	return guarded(func(t *tb) error {
		hosts := newRig(t, o.portknock, func(client, server *lab.Host) {
			lab.LinkWAN(t, client, server, lab.WAN{Delay: oneWay})
		})
		nftables.start(t, hosts)
		from := hosts.useNewAddress(t)
		var all []*process
		defer func() {
			for _, p := range all {
				p.end()
			}
		}()
		began := time.Now()
		for range size {
			p, err := start(hosts.client, portknock3.argv(hosts, from))
			if err != nil {
				return err
			}
			all = append(all, p)
		}
		connected := 0
		var memories []float64
		for _, p := range all {
			if _, err := p.banner(2 * runLimit); err != nil || ctx.Err() != nil {
				continue
			}
			connected++
			mb, err := memory(p.cmd.Process.Pid, "VmHWM")
			if err != nil {
				return err
			}
			memories = append(memories, mb)
		}
		if size == crowdSize {
			r.addFigure(figureCrowd, float64(connected), fmt.Sprintf("of %d", size))
			r.addFigure(figureCrowdMemory, quantile(memories, 1), "MB")
		} else {
			r.addFigure(fmt.Sprintf("connections at once, of %d", size), float64(connected), "")
		}
		r.addFigure("connections at once, time until the last", milliseconds(time.Since(began)), "ms")
		return nil
	})
}

// guesses measures what wrong tokens do to a server that has the rules for a year. They
// must not open the port, but each of them costs time. One processor sends and receives
// all packets.
func (r *Report) guesses(ctx context.Context, o *options) error {
	n := guessCount
	if o.quick {
		n /= 100
	}
	return guarded(func(t *tb) error {
		hosts := newDirectRig(t, o.portknock)
		src := netip.AddrPortFrom(hosts.client.Addr(lab.IPv4), 10000)
		dst := netip.AddrPortFrom(hosts.server.Addr(lab.IPv4), 62202)
		guess := make([]byte, 16)
		random := rand.NewChaCha8([32]byte{})
		perPacket := func() float64 {
			var times []float64
			for range 10 {
				began := time.Now()
				hosts.client.Flood(t, n/10, func(int) lab.Packet {
					_, _ = random.Read(guess)
					return lab.Packet{Src: src, Dst: dst, Payload: guess}
				})
				times = append(times, float64(time.Since(began).Nanoseconds())/float64(n/10)/1000)
			}
			return median(times)
		}
		// The server drops the packets, so that it does not answer with or without rules.
		hosts.dropExcept(t, guardedPort, longPort, openPort)
		r.addFigure("sending and receiving a datagram, no rules", perPacket(), "µs")
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		hosts.server.Run(t, "nft", "delete table inet server") // load creates the table again
		hosts.load(t, "nftables")
		r.addFigure("sending and receiving a wrong token, rules for a year", perPacket(), "µs")
		if n == guessCount {
			admitted := 0.
			if hosts.client.Probe(t, netip.AddrPortFrom(dst.Addr(), guardedPort)) != lab.Dropped {
				admitted = 1
			}
			r.addFigure(figureGuesses, admitted, "admitted")
		}
		return nil
	})
}

// size measures the size of the program file.
func (r *Report) size(_ context.Context, o *options) error {
	info, err := os.Stat(o.portknock)
	if err == nil {
		r.addFigure(figureSize, float64(info.Size())/1e6, "MB")
	}
	return err
}

// stderrError ends the process, and returns what the process has written to stderr as an
// error.
func (p *process) stderrError() error {
	p.cmd.End()
	if s := strings.TrimSpace(p.stderr.String()); s != "" {
		return fmt.Errorf("%s", s)
	}
	return nil
}
