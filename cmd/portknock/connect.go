package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/proxy"
	"github.com/spf13/pflag"
)

func connectFlags(a *app, f *pflag.FlagSet) {
	a.shared.networkFlags(f)
	f.BoolVar(&a.optional, "optional", false, "connect without knocking if there is no profile")
	f.BoolVarP(&a.fdpass, "fdpass", "F", false, "hand ssh the connected socket and leave, for ProxyUseFdpass")
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
// that is our stdout. After unwatch both signals act as usual again.
func watchCaller(ctx context.Context, cancel context.CancelCauseFunc, stdout *os.File) (unwatch func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // nohup ignores it
		signal.Notify(signals, syscall.SIGHUP)
	}
	unwatch = func() { signal.Stop(signals) }
	var gone <-chan struct{}
	if stdout != nil {
		gone = proxy.ReaderGone(ctx, stdout)
	}
	go func() {
		select {
		case <-signals:
			cancel(errStopped)
			// A shell that ends repeats SIGHUP at once. A later signal ends
			// even a call that does not watch ctx.
			time.Sleep(time.Second)
			unwatch()
		case <-gone:
			// ^C ends ssh too, and the end of ssh may be noticed before the ^C.
			select {
			case <-time.After(interruptGrace):
				cancel(errReaderGone)
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	}()
	return unwatch
}

// runConnect is what ssh runs. Nothing but the stream, or with -F its socket,
// goes to stdout.
func runConnect(ctx context.Context, a *app, args []string) error {
	if len(args) != 2 {
		return usageError("connect takes HOST and PORT")
	}
	if a.shared.config == "-" {
		return usageError("standard input carries the connection, so it cannot be the profile file too")
	}
	port, err := parsePort(args[1])
	if err != nil {
		return err
	}
	stdout, _ := a.stdout.(*os.File)
	if a.fdpass {
		if err := proxy.CanPassFD(stdout); err != nil { // before a knock tells anybody that we are here
			return &failure{exitUsage, fmt.Errorf("cannot pass the connection to standard output: %w", err),
				"-F goes with ProxyUseFdpass yes in ~/.ssh/config; without it, leave out -F"}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	unwatch := watchCaller(ctx, cancel, stdout)
	p, err := a.lookupNamed(ctx, args[0])
	if err != nil && !(a.optional && noProfile(err)) {
		if f, ok := errors.AsType[*failure](err); ok && errors.Is(err, fs.ErrNotExist) {
			f.hint += "; --optional connects without"
		}
		return err
	}
	dialer := a.plainDialer()
	if p != nil {
		if text := notInOpenPorts(p, port); text != "" {
			a.log.say(always, "%s: %s", p.Name, text)
		}
		if dialer, err = a.dialer(ctx, p); err != nil {
			return err
		}
	}
	conn, err := dialer.Connect(ctx, a.target(args[0], p), port)
	if err != nil {
		return connectFailure(args[0], p, err)
	}
	unwatch()
	if a.fdpass {
		err = proxy.PassFD(conn, stdout)
	} else {
		// ssh's master with ControlPersist lives on when ^C ends the command it
		// was started for. From here on ssh decides when we end.
		signal.Ignore(interrupts...)
		err = proxy.Splice(ctx, conn, a.stdin, a.stdout)
	}
	// The reader of stdout has gone. Splice does not return a peer's EPIPE.
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return connectFailure(args[0], p, err)
}

// lookupNamed returns the profile for a host of the command line.
func (a *app) lookupNamed(ctx context.Context, host string) (*profile.Profile, error) {
	if a.shared.profile != "" {
		return a.profileOf(ctx, a.shared.profile)
	}
	return a.profileOf(ctx, host)
}

// target returns where to connect. A host that names its profile stands for
// the profile's HostName; any other is an address that the caller, with
// --profile, has found out already.
func (a *app) target(host string, p *profile.Profile) string {
	if p == nil || p.HostName == "" || a.shared.profile != "" && !strings.EqualFold(host, a.shared.profile) {
		return host
	}
	return p.HostName
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, usageError("%q is not a port from 1 to 65535", s)
	}
	return uint16(n), nil
}
