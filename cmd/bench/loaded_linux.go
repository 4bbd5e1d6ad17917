package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// loaded is a slow link that one channel of an ssh connection keeps busy. Another channel
// of the same connection echoes keys. ssh has a master, so that both channels share one
// connection.
type loaded struct {
	name     string
	wan      lab.WAN
	transfer string // shell command of the busy channel, which prints a line when the channel is busy
	receiver func(*rig) *lab.Host
}

const (
	// SSH is replaced by ssh and its arguments.
	uploadZeros   = "exec SSH 'echo; cat >/dev/null' </dev/zero"
	downloadZeros = "SSH 'echo; cat /dev/zero' | { head -n 1; cat >/dev/null; }"
)

func clientOf(r *rig) *lab.Host { return r.client }
func serverOf(r *rig) *lab.Host { return r.server }

var (
	upload250   = loaded{"upload at 250 kB/s", lab.WAN{Delay: oneWay, UpRate: 250_000, Queue: 64_000}, uploadZeros, serverOf}
	upload60    = loaded{"upload at 60 kB/s", lab.WAN{Delay: oneWay, UpRate: 60_000, Queue: 30_000}, uploadZeros, serverOf}
	download250 = loaded{"download at 250 kB/s", lab.WAN{Delay: oneWay, Rate: 250_000, Queue: 64_000}, downloadZeros, clientOf}
	loadedLinks = []loaded{upload250, upload60, download250}
)

// carrier is what carries an ssh connection to the server.
type carrier struct {
	name     string
	lines    func(r *rig) []string // its lines in ssh's configuration
	programs []string              // programs that must be installed
}

var (
	directly = carrier{"ssh alone", func(*rig) []string { return nil }, nil}
	// nc outlives ssh. It must not keep ssh's stderr open, because the end of ssh waits for that.
	byNC     = carrier{"ssh with nc", func(*rig) []string { return []string{"ProxyCommand nc %h %p 2>/dev/null"} }, []string{"nc"}}
	byStream = carrier{"ssh with portknock", func(r *rig) []string {
		return []string{fmt.Sprintf("ProxyCommand %s -c %s --profile vps %%h %%p", r.portknock, r.profile)}
	}, nil}
	bySocket = carrier{"ssh with portknock -F", func(r *rig) []string {
		return []string{fmt.Sprintf("ProxyCommand %s -F -c %s --profile vps %%h %%p", r.portknock, r.profile), "ProxyUseFdpass yes"}
	}, nil}
	carriers = []carrier{directly, byNC, byStream, bySocket}
)

// loaded measures keys during transfers. The links are measured at the same time, because
// ssh mostly waits for them.
func (r *Report) loaded(ctx context.Context, o *options) error {
	links := loadedLinks
	if o.quick {
		links = links[:1]
	}
	var all sync.WaitGroup
	results, errs := make([][]Loaded, len(links)), make([]error, len(links))
	for i, l := range links {
		all.Go(func() { results[i], errs[i] = l.measure(ctx, o) })
	}
	all.Wait()
	for _, result := range results {
		r.Loaded = append(r.Loaded, result...)
	}
	return errors.Join(errs...)
}

// measure measures the carriers in turn, each a few times. It returns medians.
func (l loaded) measure(ctx context.Context, o *options) (results []Loaded, err error) {
	rounds, fill, span := 3, 2*time.Second, 4*time.Second
	if o.quick {
		rounds, fill, span = 1, 0, 0
	}
	echoes, rates := make([][]float64, len(carriers)), make([][]float64, len(carriers))
	err = guarded(func(t *tb) error {
		hosts := newRig(t, o.portknock, func(client, server *lab.Host) { lab.LinkWAN(t, client, server, l.wan) })
		const sshPort = 2022
		sshd := hosts.server.SSHD(t, []uint16{sshPort})
		for range rounds {
			for i, c := range carriers {
				if !installed(append(c.programs, "ssh", "sshd")) {
					continue
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				config := sshd.ClientConfig(t, append(c.lines(hosts), "HostName "+hosts.addr, "Port "+fmt.Sprint(sshPort))...)
				echo, rate, err := l.run(t, hosts, config, fill, span)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", l.name, c.name, err)
				}
				echoes[i], rates[i] = append(echoes[i], echo), append(rates[i], rate)
			}
		}
		return nil
	})
	for i, c := range carriers {
		if len(echoes[i]) > 0 {
			results = append(results, Loaded{l.name, c.name, median(echoes[i]), median(rates[i])})
		}
	}
	return results, err
}

// run measures one ssh connection: the median time of a key and its echo in ms, and the
// rate of the transfer in kB/s. The transfer fills the buffers on its way before the time
// span is measured.
func (l loaded) run(t *tb, hosts *rig, config string, fill, span time.Duration) (echo, rate float64, err error) {
	ssh := []string{"ssh", "-F", config, "-S", filepath.Join(t.TempDir(), "master")}
	keys, err := start(hosts.client, append(ssh, "-M", "vps", "cat"))
	if err != nil {
		return 0, 0, err
	}
	defer keys.end()
	_ = keys.out.SetReadDeadline(time.Now().Add(streamLimit))
	press := func() (ms float64, err error) {
		pressed, key := time.Now(), []byte("k")
		if _, err = keys.in.Write(key); err == nil {
			_, err = io.ReadFull(keys.out, key)
		}
		if err != nil {
			return 0, errors.Join(err, keys.stderrError())
		}
		return milliseconds(time.Since(pressed)), nil
	}
	if _, err := press(); err != nil { // waits for the login
		return 0, 0, err
	}
	transfer, err := start(hosts.client, []string{"sh", "-c", strings.Replace(l.transfer, "SSH", strings.Join(append(ssh, "vps"), " "), 1)})
	if err != nil {
		return 0, 0, err
	}
	defer transfer.end()
	defer keys.end() // before transfer.end, because ssh's master has the files of both
	_ = transfer.out.SetReadDeadline(time.Now().Add(streamLimit))
	if _, err := transfer.out.Read(make([]byte, 1)); err != nil {
		return 0, 0, err
	}
	for filling := time.Now(); time.Since(filling) < fill; {
		if _, err := press(); err != nil {
			return 0, 0, err
		}
	}
	received := func() float64 {
		text := l.receiver(hosts).Shell(t, "cat /sys/class/net/eth0/statistics/rx_bytes")
		n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	began, before := time.Now(), received()
	var times []float64
	for len(times) == 0 || time.Since(began) < span {
		ms, err := press()
		if err != nil {
			return 0, 0, err
		}
		times = append(times, ms)
		time.Sleep(50 * time.Millisecond) // between two keys of a user
	}
	rate = (received() - before) / 1000 / time.Since(began).Seconds()
	return median(times), rate, nil
}

// loadedBy returns what was measured for a carrier on a link. The figures are NaN if
// nothing was measured.
func (r *Report) loadedBy(l loaded, c carrier) Loaded {
	for _, m := range r.Loaded {
		if m.Link == l.name && m.Carrier == c.name {
			return m
		}
	}
	return Loaded{l.name, c.name, math.NaN(), math.NaN()}
}

// judgeLoaded sets the targets for keys during transfers, and for the rate of the transfers.
func (r *Report) judgeLoaded() {
	for _, target := range []struct {
		link    loaded
		carrier carrier
		most    float64
	}{
		{upload250, byStream, 0.75}, {upload250, bySocket, 0.65},
		{upload60, byStream, 0.90}, {upload60, bySocket, 0.90},
		{download250, byStream, 1.05}, {download250, bySocket, 1.05},
	} {
		alone, ours := r.loadedBy(target.link, directly), r.loadedBy(target.link, target.carrier)
		r.ratio(ours.Link+": time of a key, "+ours.Carrier+" relative to ssh alone", target.most, ours.Echo, alone.Echo)
		r.ratio(ours.Link+": rate, ssh alone relative to "+ours.Carrier, 1.03, alone.Rate, ours.Rate)
	}
}
