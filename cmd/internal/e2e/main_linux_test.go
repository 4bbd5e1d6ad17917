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

// shiftVariable is an environment variable that shifts the clock of portknock. Its
// value is a duration, such as 110s or -1h.
const shiftVariable = "PORTKNOCK_TEST_SHIFT"

func TestMain(m *testing.M) {
	lab.Main() // if this process is a host of the lab, Main does not return
	os.Exit(run(m))
}

// run builds the command, puts its folder at the start of PATH, and runs the tests.
// More tests than processors run in parallel, because tests mostly wait for the
// kernel's clock.
func run(m *testing.M) int {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = flag.Set("test.parallel", "8")
	}
	// Without this, each process of a binary built with -race ends one second late.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	if signal.Ignored(syscall.SIGHUP) { // nohup ignores SIGHUP, and children would inherit that
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

// race is true if the tests run with the race detector. The command is then built with
// the race detector too.
var race = false
