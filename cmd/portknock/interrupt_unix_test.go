//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInterruptEndsBlockedRead: ^C and ^\ end a portknock that waits for standard input, a
// pipe or a key command.
func TestInterruptEndsBlockedRead(t *testing.T) {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGQUIT} {
		t.Run(sig.String(), func(t *testing.T) { testInterruptEndsBlockedRead(t, sig) })
	}
}

func testInterruptEndsBlockedRead(t *testing.T, sig os.Signal) {
	for _, command := range []string{
		"sequence -c - vps",
		"sequence -c FIFO vps",
		"emit-rules -c FIFO vps",
		"profile import -",
		"profile import FIFO",
		"sequence -c CONFIG vps",
		"emit-rules -c CONFIG vps",
		"knock -c CONFIG vps",
		"connect -c CONFIG vps 22",
	} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			fifo := filepath.Join(t.TempDir(), "fifo")
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			w, err := os.OpenFile(fifo, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			config := filepath.Join(t.TempDir(), "config")
			text := "Host vps\n    Scheme rotating\n    KeyCommand sh -c \"cat " + fifo + " >/dev/null\"\n"
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			args := strings.Fields(strings.NewReplacer("FIFO", fifo, "CONFIG", config).Replace(command))
			c := exec.CommandContext(ctx, "portknock", args...)
			c.Env = append(os.Environ(), "HOME="+t.TempDir())
			var stderr bytes.Buffer
			c.Stderr = &stderr
			c.WaitDelay = 10 * time.Second // a KeyCommand that continues to run keeps stderr open
			var in io.Writer = w
			if strings.Contains(command, " - ") || strings.HasSuffix(command, " -") {
				if in, err = c.StdinPipe(); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			// The text is larger than a pipe holds: when all of it is written, a process is
			// reading.
			_ = w.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, err := in.Write(bytes.Repeat([]byte("#\n"), 1<<16)); err != nil {
				t.Error(err)
			}
			if err := c.Process.Signal(sig); err != nil {
				t.Error(err)
			}
			_ = c.Wait()
			if code := c.ProcessState.ExitCode(); code != 1 || stderr.String() != "portknock: interrupted\n" {
				t.Errorf("exit code %d, stderr %q; want 1 and the message that portknock was interrupted", code, stderr.String())
			}
		})
	}
}

// TestKeyCommandEndsWithPortknock: a KeyCommand that waits ends when a signal ends portknock,
// together with the processes that it has started. When SIGKILL ends portknock, Linux and FreeBSD
// kill the KeyCommand.
func TestKeyCommandEndsWithPortknock(t *testing.T) {
	for _, command := range []string{"sequence vps", "emit-rules vps", "knock vps", "knock --wait vps", "connect vps 22"} {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGKILL} {
			t.Run(command+", "+sig.String(), func(t *testing.T) {
				t.Parallel()
				script := "cat FIFO >/dev/null; true" // cat is a process that the KeyCommand has started
				if sig == syscall.SIGKILL {
					if runtime.GOOS != "linux" && runtime.GOOS != "freebsd" {
						t.Skip("this system cannot end a program with its parent")
					}
					script = "exec cat FIFO >/dev/null"
				}
				fifo, config := filepath.Join(t.TempDir(), "fifo"), filepath.Join(t.TempDir(), "config")
				if err := unix.Mkfifo(fifo, 0o600); err != nil {
					t.Fatal(err)
				}
				text := "Host vps\n    Scheme rotating\n    KeyCommand sh -c \"" + strings.ReplaceAll(script, "FIFO", fifo) + "\"\n"
				if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				c := exec.CommandContext(t.Context(), "portknock", append([]string{"-c", config}, strings.Fields(command)...)...)
				c.Env = append(os.Environ(), "HOME="+t.TempDir(), "XDG_STATE_HOME="+t.TempDir())
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				w, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits until cat reads
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
				if err := c.Process.Signal(sig); err != nil {
					t.Error(err)
				}
				_ = c.Wait()
				for began := time.Now(); ; time.Sleep(10 * time.Millisecond) { // the system may end it a moment later
					if _, err := w.WriteString("x"); errors.Is(err, syscall.EPIPE) {
						return
					}
					if time.Since(began) > 10*time.Second {
						t.Fatal("the KeyCommand still reads")
					}
				}
			})
		}
	}
}
