package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// The ports of the servers that stream or echo.
var (
	down = direction{"down", 5001, download} // the server sends size bytes, then waits for the end
	up   = direction{"up", 5002, upload}     // the server receives size bytes, then sends one byte
)

// echoPort is the port of a server that sends back what it receives.
const echoPort = 5003

// direction is a direction of a stream.
type direction struct {
	name string
	port uint16
	run  func(p *process, size int64) error
}

// streamOf returns a contestant's stream without measured values.
func (d direction) streamOf(c contestant) Stream {
	return Stream{Contestant: c.name, Direction: d.name}
}

// streamLimit is how long one stream may take.
const streamLimit = time.Minute

// streams measures what streams cost, on a link without delay.
func (r *Report) streams(ctx context.Context, o *options) error {
	size, rounds := int64(1<<30), 3
	if o.quick {
		size, rounds = 64<<20, 1
	}
	return guarded(func(t *tb) error {
		hosts := newDirectRig(t, o.portknock)
		hosts.server.Serve(t, down.port, func(c net.Conn) {
			_, _ = io.CopyN(c, zeros{}, size)
			_, _ = io.Copy(io.Discard, c)
		})
		hosts.server.Serve(t, up.port, func(c net.Conn) {
			if _, err := io.CopyN(io.Discard, c, size); err == nil {
				_, _ = c.Write([]byte{0})
				_, _ = io.Copy(io.Discard, c)
			}
		})
		for _, d := range []direction{down, up} {
			var runs [2][]Stream
			for range rounds {
				for i, c := range []contestant{ncTo(d.port), portknockTo(d.port)} {
					s := d.streamOf(c)
					if !o.wants(s.name()) || !installed(c.programs) {
						continue
					}
					if ctx.Err() != nil {
						return context.Cause(ctx)
					}
					if err := s.measure(hosts.client, c.argv(hosts, netip.Addr{}), d.run, size); err != nil {
						return fmt.Errorf("%s: %w", s.name(), err)
					}
					runs[i] = append(runs[i], s)
				}
			}
			for _, list := range runs {
				if len(list) > 0 {
					r.Streams = append(r.Streams, medians(list))
				}
			}
		}
		return nil
	})
}

// medians returns the median of each figure.
func medians(list []Stream) Stream {
	pick := func(get func(Stream) float64) float64 {
		var values []float64
		for _, s := range list {
			values = append(values, get(s))
		}
		return median(values)
	}
	s := list[0]
	s.CPU = pick(func(s Stream) float64 { return s.CPU })
	s.Rate = pick(func(s Stream) float64 { return s.Rate })
	s.Memory = pick(func(s Stream) float64 { return s.Memory })
	return s
}

// measure runs one stream. CPU and Memory include the start of the process.
func (s *Stream) measure(h *lab.Host, argv []string, run func(*process, int64) error, size int64) error {
	p, err := start(h, argv)
	if err != nil {
		return err
	}
	defer p.end()
	stuck := time.AfterFunc(streamLimit, p.cmd.End)
	defer stuck.Stop()
	began := time.Now()
	if err := run(p, size); err != nil {
		return errors.Join(err, p.stderrError())
	}
	s.Rate = float64(size) / 1e6 / time.Since(began).Seconds()
	cpu, err := cpuTime(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	s.CPU = cpu.Seconds() * (1 << 30) / float64(size)
	s.Memory, err = memory(p.cmd.Process.Pid, "VmHWM")
	return err
}

// download reads the bytes that the server sends.
func download(p *process, size int64) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(p.out, size), make([]byte, 1<<20))
	return err
}

// upload writes the bytes, and reads the server's confirmation.
func upload(p *process, size int64) error {
	if _, err := io.CopyBuffer(struct{ io.Writer }{p.in}, io.LimitReader(zeros{}, size), make([]byte, 1<<20)); err != nil {
		return err
	}
	_, err := io.ReadFull(p.out, make([]byte, 1))
	return err
}

// zeros is an endless stream of bytes without meaning.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// cpuTime returns the CPU time that a process has used so far, user and system together.
func cpuTime(pid int) (time.Duration, error) {
	// schedstat has nanoseconds, for each thread. /proc/PID/stat has only hundredths of a
	// second.
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, task.Name()))
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// memory returns a field of a process's status, in MB (a million bytes).
func memory(pid int, field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kB, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			return kB * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("the process status has no field %s", field)
}
