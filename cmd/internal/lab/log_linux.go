package lab

import (
	"bytes"
	"sync"
	"time"
)

// lockedBuffer collects the output of a program.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

// Log collects the output of a daemon while the daemon runs.
type Log struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

// Write adds output to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return l.buf.Write(p)
}

// String returns the log so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Await waits until the log contains text n times.
func (l *Log) Await(t TB, text string, n int) {
	t.Helper()
	late := time.After(limit)
	for {
		l.mu.Lock()
		found := bytes.Count(l.buf.Bytes(), []byte(text)) >= n
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("no %q in the log after %v:\n%s", text, limit, l)
		}
	}
}

// Await calls pending until pending returns "", at first every millisecond and then less
// often. After the time within, Await ends the test with the last answer of pending.
func Await(t TB, within time.Duration, pending func() string) {
	t.Helper()
	pause := time.Millisecond
	for end := time.Now().Add(within); ; time.Sleep(pause) {
		problem := pending()
		if problem == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v: %s", within, problem)
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}
