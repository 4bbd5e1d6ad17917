package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/proxy"
	"github.com/spf13/pflag"
)

// connect knocks and connects, with a command name or without.
type connect struct {
	remote
	optional, fdpass bool
}

func (c *connect) flags(a *app, f *pflag.FlagSet) {
	c.remote.flags(a, f)
	f.BoolVar(&c.optional, "optional", false, "connect without knocking if there is no profile")
	f.BoolVarP(&c.fdpass, "fdpass", "F", false, "pass the connected socket to ssh and exit, for ProxyUseFdpass")
}

// run is what ssh runs. Nothing but the stream, or with -F its socket,
// goes to stdout.
func (c *connect) run(ctx context.Context, a *app, args []string) error {
	if c.config.path == "-" {
		return usageError("-c - cannot be used here: standard input carries the connection")
	}
	port, err := parsePort(args[1])
	if err != nil {
		return err
	}
	if c.fdpass {
		if err := proxy.CanPassFD(a.stdout); err != nil { // before a knock tells anybody that we are here
			return &failure{exitUsage, fmt.Errorf("cannot pass the connection to standard output: %w", err),
				"use -F only with ProxyUseFdpass yes in ~/.ssh/config"}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	unwatch := watchCaller(ctx, cancel, a.stdout)
	p, err := c.config.profile(ctx, a, cmp.Or(c.name, args[0]))
	if c.optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, profile.ErrNoProfile)) {
		p, err = c.withoutKnocks(args[0]), nil
	}
	if f, ok := errors.AsType[*failure](err); ok && errors.Is(err, fs.ErrNotExist) {
		f.hint += "; --optional connects without a profile"
	}
	if err != nil {
		return err
	}
	if text := notInOpenPorts(p, port); text != "" {
		a.log.say(always, "%s: %s", p.Name, text)
	}
	d, err := dialer(ctx, p, &a.log)
	if err != nil {
		return err
	}
	conn, err := d.Connect(ctx, c.target(args[0], p), port)
	if err != nil {
		return connectFailure(p, err)
	}
	unwatch()
	if c.fdpass {
		err = proxy.PassFD(conn, a.stdout)
	} else {
		// ssh's master with ControlPersist lives on when ^C ends the command it
		// was started for. From here on ssh decides when we end.
		signal.Ignore(interrupts...)
		err = proxy.Splice(ctx, conn, a.stdin, a.stdout)
	}
	// The reader of stdout has gone. Splice does not return a peer's EPIPE.
	if errors.Is(err, context.Canceled) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return connectFailure(p, err)
}

// The causes with which watchCaller cancels a context.
var (
	errStopped    = errors.New("stopped by the calling program")
	errReaderGone = errors.New("the calling program no longer reads standard output")
)

// interruptGrace is how long a ^C may take to reach this program, after ssh has
// ended by the same ^C.
const interruptGrace = 200 * time.Millisecond

// watchCaller cancels a context when the calling program gives up: by SIGHUP,
// which ssh sends when its ConnectTimeout ends, by SIGTERM, or by closing the pipe
// that is our stdout. After unwatch both signals act as usual again. The context
// keeps the first cause. What waits here ends with the process.
func watchCaller(ctx context.Context, cancel context.CancelCauseFunc, stdout *os.File) (unwatch func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup ignores it
		signal.Notify(signals, syscall.SIGHUP)
	}
	unwatch = func() { signal.Stop(signals) }
	go func() {
		<-signals
		cancel(errStopped)
		// A shell that ends repeats SIGHUP at once. A later signal ends even a
		// call that does not watch ctx.
		time.Sleep(time.Second)
		unwatch()
	}()
	gone := proxy.ReaderGone(ctx, stdout)
	go func() {
		<-gone
		// ^C ends ssh too, and the end of ssh may be noticed before the ^C.
		time.Sleep(interruptGrace)
		cancel(errReaderGone)
	}()
	return unwatch
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, usageError("%q is not a port from 1 to 65535", s)
	}
	return uint16(n), nil
}
