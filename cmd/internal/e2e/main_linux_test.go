package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// shiftVariable is by how much the clock of a portknock is wrong that a test runs.
const shiftVariable = "PORTKNOCK_TEST_SHIFT"

func TestMain(m *testing.M) {
	lab.Main() // this process may be a host
	os.Exit(run(m))
}

// run builds the command, puts it in front of PATH, and runs the tests. More of
// them run in parallel than there are processors, since they mostly wait for the
// kernel's clock.
func run(m *testing.M) int {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set("test.parallel", "8")
	}
	// Otherwise every process of a binary built with -race ends a second late.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	if signal.Ignored(syscall.SIGHUP) { // as under nohup; a child would inherit it
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	dir, err := os.MkdirTemp("", "portknock-e2e-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	args := []string{"build", "-buildvcs=false", "-tags", "shiftedclock", "-o", filepath.Join(dir, "portknock")}
	if race {
		args = append(args, "-race")
	}
	c := exec.Command("go", append(args, "github.com/portknock/portknock/cmd/portknock")...)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the command:", err)
		return 1
	}
	_ = os.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return m.Run()
}

// race is whether the tests run under the race detector; then the command does too.
var race = false
