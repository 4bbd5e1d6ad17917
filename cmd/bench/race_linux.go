package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// runLimit is how long a contestant may take. It is portknock's own ConnectTimeout, and a
// little time for portknock's message.
const runLimit = 10500 * time.Millisecond

// grid describes the cells of one link and one server.
type grid struct {
	link        string
	wan         lab.WAN
	server      server
	contestants []contestant
	prepare     func(t *tb, r *rig) // further setup after the server's start; may be nil
	run         runner              // runs the contestants; nil runs them in turn
}

// runner runs contestants, and adds the results to their cells.
type runner func(ctx context.Context, t *tb, o *options, r *rig, selected []contestant, cells []Cell) error

// cell returns the cell of a contestant before its first run.
func (g grid) cell(c contestant) Cell {
	cell := Cell{Link: g.link, Server: g.server.name, Contestant: c.name}
	if c.direct {
		cell.Server = unguarded.name
	}
	return cell
}

// cells measures all contestants that are selected and installed. The contestants take
// turns, so that other load of the machine affects all alike.
func (g grid) cells(ctx context.Context, o *options) (cells []Cell, missing []string, err error) {
	var selected []contestant
	for _, c := range g.contestants {
		cell := g.cell(c)
		switch {
		case !o.wants(cell.name()), o.quick && c.slow:
		case !installed(append(c.programs, g.server.programs...)):
			missing = append(missing, cell.name()+": not installed")
		default:
			selected, cells = append(selected, c), append(cells, cell)
		}
	}
	if len(selected) == 0 {
		return nil, missing, nil
	}
	err = guarded(func(t *tb) error {
		r := newRig(t, o.portknock, func(client, server *lab.Host) { lab.LinkWAN(t, client, server, g.wan) })
		g.server.start(t, r)
		if g.prepare != nil {
			g.prepare(t, r)
		}
		if g.run != nil {
			return g.run(ctx, t, o, r, selected, cells)
		}
		return g.race(ctx, t, o, r, selected, cells)
	})
	if err != nil {
		missing = append(missing, fmt.Sprintf("%s/%s: %v", g.link, g.server.name, err))
	}
	return cells, missing, context.Cause(ctx)
}

// race runs the contestants in turn. A contestant that is not needed drops out when it has
// used up its time budget.
func (g grid) race(ctx context.Context, t *tb, o *options, r *rig, selected []contestant, cells []Cell) error {
	budget := time.Duration(o.runs) * 500 * time.Millisecond
	spent := make([]time.Duration, len(selected))
	for n := range o.runs {
		for i, c := range selected {
			if !c.needed && spent[i] > budget && n >= 3 { // three runs are enough for a median
				continue
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			start := time.Now()
			took, err := r.attempt(c.argv(r, r.useNewAddress(t)))
			if err != nil && time.Since(start) < runLimit/2 && n == 0 && g.wan.Loss == 0 {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			spent[i] += time.Since(start)
			cells[i].Runs++
			if err != nil {
				cells[i].Failures = append(cells[i].Failures, err.Error())
				continue
			}
			cells[i].Times = append(cells[i].Times, milliseconds(took))
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// useNewAddress gives the client an address that the client has not used before. The
// opening of an earlier run is for another address, so it does not affect the next run.
func (r *rig) useNewAddress(t *tb) netip.Addr {
	r.sources++
	from := r.client.Source(lab.IPv4, r.sources)
	r.client.Run(t, "ip", "route", "replace", r.addr, "dev", "eth0", "src", from.String())
	return from
}

// attempt runs a contestant until the contestant prints a banner. It returns the time from
// the start of the contestant.
func (r *rig) attempt(argv []string) (time.Duration, error) {
	p, err := start(r.client, argv)
	if err != nil {
		return 0, err
	}
	defer p.end()
	// attempt sends a banner at once, as ssh does, which does not wait for the server's
	// banner. The banner also replaces the last ACK of the handshake if that ACK is lost.
	if _, err := p.in.WriteString(banner); err != nil {
		return 0, err
	}
	return p.banner(runLimit)
}

// banner is the first line that both sides of SSH send.
const banner = "SSH-2.0-bench\r\n"

// process is a running contestant.
type process struct {
	cmd     *lab.Cmd
	began   time.Time
	in, out *os.File // the other ends of its standard input and output
	stderr  bytes.Buffer
}

func start(h *lab.Host, argv []string) (*process, error) {
	p := &process{cmd: h.Command(argv[0], argv[1:]...)}
	stdin, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p.in, p.out = in, out
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, stdout, &p.stderr
	p.began = time.Now()
	err = p.cmd.Start()
	_, _ = stdin.Close(), stdout.Close()
	if err != nil {
		_, _ = in.Close(), out.Close()
		return nil, err
	}
	return p, nil
}

// end kills the process if it still runs.
func (p *process) end() {
	p.cmd.End()
	_ = p.in.Close()
	_ = p.out.Close()
}

// banner waits for the server's banner, and returns the time since the start of the
// process.
func (p *process) banner(limit time.Duration) (time.Duration, error) {
	_ = p.out.SetReadDeadline(p.began.Add(limit))
	var got []byte
	for buf := make([]byte, 4096); ; {
		n, err := p.out.Read(buf)
		got = append(got, buf[:n]...)
		if bytes.Contains(got, []byte(banner)) {
			return time.Since(p.began), p.out.SetReadDeadline(time.Time{})
		}
		if err != nil {
			p.cmd.End() // a running process might still write to stderr
			return 0, fmt.Errorf("no SSH banner: %w: %s", err, bytes.TrimSpace(p.stderr.Bytes()))
		}
	}
}
