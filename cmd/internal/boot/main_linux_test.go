package boot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// buildDir is the folder of the built command.
var buildDir string

func TestMain(m *testing.M) {
	lab.Main() // if this process is a host of the lab, Main does not return
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "portknock-boot-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	buildDir = dir
	_ = os.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return m.Run()
}

// build builds the command, which then is in the PATH of all hosts but the machines. The
// command needs no shared libraries, so that it runs on every release.
var build = sync.OnceValue(func() error {
	c := exec.Command("go", "build", "-buildvcs=false", "-tags", "shiftedclock",
		"-o", filepath.Join(buildDir, "portknock"), "github.com/portknock/portknock/cmd/portknock")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build the command: %w\n%s", err, out)
	}
	return nil
})

// newMachine makes a machine and the client of its segment. The built command is in the
// PATH of both.
func newMachine(t testing.TB, release string) (*lab.Machine, *lab.Host) {
	t.Helper()
	client := lab.NewHost(t, "client")
	m := lab.NewMachine(t, release, client)
	if err := build(); err != nil {
		t.Fatal(err)
	}
	copyTo(t, m, filepath.Join(buildDir, "portknock"), "/usr/local/bin/portknock", 0o755)
	return m, client
}

// copyTo copies a file of this process to a machine.
func copyTo(t testing.TB, m *lab.Machine, from, to string, mode os.FileMode) {
	t.Helper()
	write(t, m, to, lab.ReadFile(t, from), mode)
}

// write writes a file of a machine, and makes its folder.
func write(t testing.TB, m *lab.Machine, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(m.Path(filepath.Dir(path)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.Path(path), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
