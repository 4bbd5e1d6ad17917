package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/proxy"
	"github.com/spf13/pflag"
)

// connect is the command that knocks and connects. It also runs if no command is named.
type connect struct {
	remote
	optional, fdpass bool
}

func (c *connect) flags(a *app, f *pflag.FlagSet) {
	c.remote.flags(a, f)
	f.BoolVar(&c.optional, "optional", false, "connect without knocking if there is no profile")
	f.BoolVarP(&c.fdpass, "fdpass", "F", false, "pass the connected socket to ssh and exit, for ProxyUseFdpass")
}

// run is what ssh starts as its ProxyCommand. It writes only the stream to stdout, or with
// -F only the socket of the stream.
func (c *connect) run(ctx context.Context, a *app, args []string) error {
	if c.config.path == "-" {
		return usageError("-c - cannot be used here: standard input carries the connection")
	}
	port, err := parsePort(args[1])
	if err != nil {
		return err
	}
	if c.fdpass {
		// Check this first, because a knock shows others that this client is here.
		if err := proxy.CanPassFD(a.stdout); err != nil {
			return &failure{exitUsage, fmt.Errorf("cannot pass the connection to standard output: %w", err),
				"use -F only with ProxyUseFdpass yes in ~/.ssh/config"}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchReader(ctx, cancel, a.stdout)
	p, last, err := c.config.login(ctx, a, cmp.Or(c.name, args[0]))
	if c.optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, profile.ErrNoProfile)) {
		p, err = c.withoutKnocks(args[0]), nil
	}
	if f, ok := errors.AsType[*failure](err); ok {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			f.hint += "; --optional connects without a profile"
		case errors.Is(err, profile.ErrNoProfile) && c.name == "":
			f.hint = "%h is ssh's HostName, not the name that you typed (%n)\n" +
				"to find the profile by that name, use: ProxyCommand portknock --profile %n %h %p\n" + f.hint
		}
	}
	if err != nil {
		return err
	}
	a.connecting = p.Name
	if text := openPortsWarning(p, port); text != "" {
		a.log.say(always, "%s: %s", p.Name, text)
	}
	deployed, err := otherKnocks(ctx, a, p, last)
	if err != nil {
		return err
	}
	d, err := dialer(ctx, p, deployed, &a.log)
	if err != nil {
		return err
	}
	watched := d.watch(&a.log)
	conn, err := d.Connect(ctx, c.target(args[0], p), port)
	watched()
	if err != nil {
		return connectFailure(d, p, err)
	}
	a.connecting = ""
	signal.Reset(terminations()...) // from here on, they end portknock at once
	if c.fdpass {
		err = proxy.PassFD(conn, a.stdout)
		d.remember()
	} else {
		go d.remember() // it ends long before the session
		// With ControlPersist, ssh's master stays alive when ^C ends the command that
		// started it, or ^Z stops it. From here on, ssh decides when portknock ends.
		signal.Ignore(slices.Concat(interrupts, suspends)...)
		err = proxy.Splice(ctx, conn, a.stdin, a.stdout)
	}
	// Both errors mean that the reader of stdout has gone: Splice does not return an EPIPE
	// of conn.
	if errors.Is(err, context.Canceled) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return connectFailure(d, p, err)
}

// errReaderGone is the cause with which watchReader cancels a context.
var errReaderGone = errors.New("the calling program no longer reads standard output")

// interruptGrace is how long a ^C may take to reach portknock after the same ^C has ended
// ssh.
const interruptGrace = 200 * time.Millisecond

// watchReader cancels ctx when the calling program closes the pipe that is portknock's stdout.
// Its goroutine ends with the process.
func watchReader(ctx context.Context, cancel context.CancelCauseFunc, stdout *os.File) {
	gone := proxy.ReaderGone(ctx, stdout)
	go func() {
		<-gone
		// ^C also ends ssh. portknock may notice the end of ssh before the ^C.
		time.Sleep(interruptGrace)
		cancel(errReaderGone)
	}()
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, usageError("%q is not a port from 1 to 65535", s)
	}
	return uint16(n), nil
}
