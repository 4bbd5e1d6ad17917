package main

import (
	"fmt"
	"os"
	"slices"
)

// tb acts as a test for the lab. Its methods that end a test end the function that
// [guarded] runs.
type tb struct {
	cleanups []func()
	failed   bool
	messages []any
}

// ended is the value with which a tb panics.
type ended struct{ error }

// guarded runs f, cleans up after f, and returns the error of f or the reason why f ended
// early.
func guarded(f func(t *tb) error) (err error) {
	t := &tb{}
	defer func() {
		r := recover()
		if e, ok := r.(ended); ok {
			err = e.error
		} else if r != nil {
			defer panic(r)
		}
		for _, c := range slices.Backward(t.cleanups) {
			c()
		}
	}()
	return f(t)
}

func (t *tb) Helper()          {}
func (t *tb) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }
func (t *tb) Failed() bool     { return t.failed }

func (t *tb) TempDir() string {
	dir, err := os.MkdirTemp("", "portknock-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (t *tb) Logf(string, ...any) {} // only tests need the logs of daemons

func (t *tb) Errorf(format string, args ...any) {
	t.failed = true
	t.messages = append(t.messages, fmt.Sprintf(format, args...))
}

func (t *tb) FailNow() { t.Fatal(t.messages...) }

func (t *tb) Fatal(args ...any) {
	t.failed = true
	panic(ended{fmt.Errorf("%s", fmt.Sprint(args...))})
}

func (t *tb) Fatalf(format string, args ...any) { t.Fatal(fmt.Sprintf(format, args...)) }
func (t *tb) Skipf(format string, args ...any)  { t.Fatal(fmt.Sprintf(format, args...)) }
