//go:build unix

package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFullFileDelaysOneLine: while a file is full, only the first line waits. Afterwards
// all lines are written, in order.
func TestFullFileDelaysOneLine(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	_ = w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	filler, _ := w.Write(make([]byte, 1<<20)) // more than a pipe holds
	_ = w.SetWriteDeadline(time.Time{})
	var l lineWriter
	const lines = 100
	began := time.Now()
	for n := range lines {
		l.write(w, fmt.Sprintf("%d\n", n))
	}
	if took := time.Since(began); took > lines*writeTime/10 {
		t.Errorf("%d lines took %v, want %v", lines, took, writeTime)
	}
	out := bufio.NewReader(r)
	if _, err := out.Discard(filler); err != nil {
		t.Fatal(err)
	}
	for n := range lines {
		if line, err := out.ReadString('\n'); line != fmt.Sprintf("%d\n", n) {
			t.Fatalf("line %d is %q, error %v", n, line, err)
		}
	}
}

// TestFIFOWithoutReaderIsNotOpened: a log that no program reads does not stop a command.
func TestFIFOWithoutReaderIsNotOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l := logger{path: path, quiet: true}
	if err := l.open(t.Context()); err != nil || l.file != nil {
		t.Errorf("open opens %v and returns the error %v, want none", l.file, err)
	}
}
