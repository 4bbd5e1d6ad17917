package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// The levels of messages.
const (
	always  = iota // printed unless -q is given
	verbose        // printed with -v, and always in the log file
	details        // printed with -vv, and always in the log file
	secrets        // printed with -vv, and in the log file with -vv: the knocks that are sent
)

// logger writes lines to stderr and to a file. The file is needed because ssh with
// ControlPersist sends portknock's stderr to /dev/null.
type logger struct {
	level  int
	quiet  bool
	path   string   // path of the log file, "" for no file
	opened bool     // open was called
	file   *os.File // the log file, nil if path is ""
}

func (l *logger) flags(f *pflag.FlagSet) {
	f.CountVarP(&l.level, "verbose", "v", "``print what happens, a line for each round; given twice, print every\nstep, and the knocks")
	f.BoolVarP(&l.quiet, "quiet", "q", false, "print nothing, not even errors")
	f.StringVar(&l.path, "log-file", os.Getenv("PORTKNOCK_LOG"), "write a log to the end of this `FILE`, or set PORTKNOCK_LOG=FILE")
}

// open opens the log file that the flags name, and checks the flags.
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

// say writes a line to the file and then to stderr, if the flags ask for its level. In the
// file, each line starts with the time.
func (l *logger) say(level int, format string, args ...any) {
	line := oneLine(fmt.Sprintf(format, args...))
	limit := l.level
	if limit >= details { // -vv
		limit = secrets
	}
	if l.file != nil && level <= max(limit, details) {
		now := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
		fmt.Fprintf(l.file, "%s [%d] %s\n", now, os.Getpid(), strings.TrimSpace(line))
	}
	if level <= limit && (!l.quiet || l.level > 0) { // -q with -v is an error, which the user must see
		fmt.Fprintf(os.Stderr, "portknock: %s\n", line)
	}
}

// warn writes warnings, which are not failures.
func (l *logger) warn(lines []string) {
	for _, line := range lines {
		l.say(always, "%s", line)
	}
}
