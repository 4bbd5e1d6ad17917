package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/portknock/portknock/knock/secret"
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
// ControlPersist sends portknock's stderr to /dev/null. Neither of them can stop a login.
type logger struct {
	level  int
	quiet  bool
	path   string   // path of the log file, "" for no file
	opened bool     // open was called
	file   *os.File // the log file, nil without one

	toFile, toStderr lineWriter
}

func (l *logger) flags(f *pflag.FlagSet) {
	f.CountVarP(&l.level, "verbose", "v", "``print what happens, a line for each round; given twice, print every\nstep, and the knocks")
	f.BoolVarP(&l.quiet, "quiet", "q", false, "print nothing, not even errors")
	f.StringVar(&l.path, "log-file", os.Getenv("PORTKNOCK_LOG"), "write a log to the end of this `FILE`, or set PORTKNOCK_LOG=FILE")
}

// open opens the log file that the flags name, and checks the flags. A log that is not safe
// does not stop a login.
func (l *logger) open(ctx context.Context) error {
	l.opened = true
	if l.path != "" {
		file, err := await(ctx, func() (*os.File, error) { return openLog(l.path) })
		switch {
		case err == nil:
			l.file = file
		case errors.Is(err, errNoLog):
			l.say(always, "%v", err)
		default:
			return usageError("cannot open the log: %w", err)
		}
	}
	if l.quiet && l.level > 0 {
		return usageError("-q and -v cannot be used together")
	}
	return nil
}

// errNoLog is the error for a log that exists but must not be used.
var errNoLog = errors.New("no log is written")

// openLog opens a log file. With -vv, a log has knocks, so no other user may read or replace
// the file. openLog follows no symbolic link, because the link may lead to another user's file,
// and does not wait for the reader of a FIFO.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK|noFollow, 0o600)
	if err != nil {
		switch info, _ := os.Lstat(path); {
		case errors.Is(err, syscall.ENXIO):
			err = fmt.Errorf("%w: no program reads %s", errNoLog, path)
		case info != nil && info.Mode()&fs.ModeSymlink != 0:
			err = fmt.Errorf("%w: %s is a symbolic link; name the file itself", errNoLog, path)
		}
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode()&fs.ModeDevice == 0 {
		err = cmp.Or(secret.CheckOwner(path, info), secret.CheckReaders(path, info, "a log"))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %w", errNoLog, err)
	}
	return f, nil
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
		l.toFile.write(l.file, fmt.Sprintf("%s [%d] %s\n", now, os.Getpid(), strings.TrimSpace(line)))
	}
	if level <= limit && (!l.quiet || l.level > 0) { // -q with -v is an error, which the user must see
		l.toStderr.write(os.Stderr, fmt.Sprintf("portknock: %s\n", line))
	}
}

// lineWriter writes lines to a file that may be full, such as a pipe that its reader has
// stopped to read. Lines that cannot be written now are written later, in order, unless the
// process ends before.
type lineWriter struct {
	last chan struct{} // closed when the last line is written; nil before the first line
}

// lines is held while a line is written: goroutines share a logger, or have copies of it.
var lines sync.Mutex

// writeTime is how long a line may delay its caller.
const writeTime = 100 * time.Millisecond

// write writes a line to f. If the file accepts it at once, the line is written when write
// returns. A line delays its caller for at most writeTime, and not at all if an earlier
// line is not written yet.
func (l *lineWriter) write(f *os.File, line string) {
	lines.Lock()
	defer lines.Unlock()
	wait, before, written := writeTime, l.last, make(chan struct{})
	if before != nil {
		select {
		case <-before:
		default:
			wait = 0
		}
	}
	l.last = written
	go func() {
		if before != nil {
			<-before
		}
		_, _ = f.WriteString(line) // a full disk must not stop a login
		close(written)
	}()
	select {
	case <-written:
	case <-time.After(wait):
	}
}

// warn writes warnings, which are not failures.
func (l *logger) warn(lines []string) {
	for _, line := range lines {
		l.say(always, "%s", line)
	}
}
