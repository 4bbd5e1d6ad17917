package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/portknock/portknock/proxy"
	"github.com/spf13/pflag"
)

// The levels of what is said.
const (
	always  = iota
	verbose // -v
	secrets // -vv: what is sent, too
)

// logger writes lines to stderr and to a file. ssh with ControlPersist sends
// our stderr to /dev/null, which is what the file is for.
type logger struct {
	level  int
	quiet  bool
	path   string
	opened bool
	file   *os.File // nil if there is no path
}

func (l *logger) flags(f *pflag.FlagSet) {
	f.CountVarP(&l.level, "verbose", "v", "``print what happens; given twice, print the knocks too")
	f.BoolVarP(&l.quiet, "quiet", "q", false, "print nothing, not even errors")
	f.StringVar(&l.path, "log-file", os.Getenv("PORTKNOCK_LOG"), "also append what happens to this `FILE`; or set PORTKNOCK_LOG")
}

// open opens what the flags name.
func (l *logger) open(ctx context.Context) (err error) {
	l.opened = true
	if l.path != "" {
		l.file, err = await(ctx, func() (*os.File, error) {
			return os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		})
		if err != nil {
			return usageError("cannot open the log: %w", err)
		}
	}
	if l.quiet && l.level > 0 {
		return usageError("-q and -v cannot be used together")
	}
	return nil
}

// say writes a line if its level is asked for, to the file first. The file gets
// what -v says even without -v, and a time.
func (l *logger) say(level int, format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if l.file != nil && level <= max(l.level, verbose) {
		now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
		fmt.Fprintf(l.file, "%s [%d] %s\n", now, os.Getpid(), strings.TrimSpace(line))
	}
	if level <= l.level && (!l.quiet || l.level > 0) { // -q beside -v is an error, which must be seen
		fmt.Fprintf(os.Stderr, "portknock: %s\n", line)
	}
}

// warn says what is no failure.
func (l *logger) warn(lines []string) {
	for _, line := range lines {
		l.say(always, "%s", line)
	}
}

// trace says what the dialer does.
func (l *logger) trace(e proxy.Event) {
	if op, ok := errors.AsType[*net.OpError](e.Err); ok {
		e.Err = op.Err // the rest stands in the line already
	}
	text := fmt.Sprintf("round %d: %v %v", e.Round, e.Kind, e.To)
	switch {
	case e.Kind == proxy.Resolved:
		text = "resolved: " + strings.Trim(fmt.Sprint(e.Addrs), "[]")
	case e.Err != nil:
		text += ": " + e.Err.Error()
	case e.From.IsValid():
		text += " from " + e.From.String()
	}
	l.say(verbose, "%.1f ms: %s", float64(e.At)/float64(time.Millisecond), text)
}
