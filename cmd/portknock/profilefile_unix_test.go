//go:build unix

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/knock/profile"
)

// profileCommand returns a command of the group profile for a profile file.
func profileCommand(t testing.TB, config string, args ...string) *exec.Cmd {
	c := exec.CommandContext(t.Context(), "portknock", append([]string{"-c", config, "profile"}, args...)...)
	home := filepath.Dir(config)
	c.Env = append(os.Environ(), "HOME="+home, "XDG_STATE_HOME="+home, "GORACE=atexit_sleep_ms=0", "VISUAL=",
		`EDITOR=f() { echo "# edited" >>"$1"; }; f`)
	return c
}

// TestProfilesAddedAtOnceAllLand: portknock profile add runs many times at once.
func TestProfilesAddedAtOnceAllLand(t *testing.T) {
	config := filepath.Join(t.TempDir(), "new", "config")
	var wait sync.WaitGroup
	for n := range 20 {
		wait.Go(func() {
			out, err := profileCommand(t, config, "add", fmt.Sprintf("h%d", n), "--host", fmt.Sprintf("192.0.2.%d", n), "--scheme", "token").CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	wait.Wait()
	keys := map[string]bool{}
	for n := range 20 {
		keys[serverOf(t, lookUp(t, config, fmt.Sprintf("h%d", n))).Fingerprint] = true
	}
	if len(keys) != 20 {
		t.Errorf("got %d different keys, want 20", len(keys))
	}
}

// TestKilledChangesOfTheProfileFile: commands that change the profile file are killed at random
// moments. The file is then the old one or the new one, every key that it names or named is
// there, and the same command works again.
func TestKilledChangesOfTheProfileFile(t *testing.T) {
	const old = "# mine\nHost vps\n    Scheme fwknop\n    KeyFile vps.key # c\n    HMACKeyFile vps.hmac\n\n# all\nHost *\n    OpenFor 20\n"
	const web = "# web\nHost web\n    Sequence 7001 8003 9005\n\n"
	const key, hmac = "a passphrase\n", "another one\n"
	rounds := 200
	if testing.Short() {
		rounds = 10
	}
	quoted := regexp.QuoteMeta(old)
	block := func(text string) string { // old with another block
		return strings.Replace(quoted, "# all", text+"\n# all", 1)
	}
	for name, tt := range map[string]struct {
		args string // arguments of the command
		old  string // text of the profile file
		want string // regular expression for the new text
	}{
		"add": {"add new --host 192.0.2.1 --scheme rotating", old,
			block(`Host new\n    HostName 192\.0\.2\.1\n    Scheme rotating\n    KeyFile new(-\d+)?\.key\n`)},
		"edit":   {"edit", old, quoted + "# edited\n"},
		"rotate": {"rotate --force vps", old, strings.NewReplacer(`vps\.key`, `vps-\d+\.key`, `vps\.hmac`, `vps-\d+\.hmac`).Replace(quoted)},
		"scheme": {"rotate --force --scheme token vps", old, strings.NewReplacer(`fwknop`, `token`, `vps\.key`, `vps-\d+\.key`, "    HMACKeyFile vps\\.hmac\n", "").Replace(quoted)},
		"remove": {"remove web", web + old, quoted},
		"import": {"import RC", old, block(`Host imported\n    HostName 192\.0\.2\.1\n    Scheme fwknop\n(    \w+ \S+\n)*`)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := regexp.MustCompile("^" + tt.want + "$")
			var config string
			start := func() *exec.Cmd {
				config = writeConfig(t, tt.old, map[string]string{"vps.key": key, "vps.hmac": hmac,
					"rc": "[imported]\nSPA_SERVER 192.0.2.1\nACCESS tcp/22\nALLOW_IP source\nKEY secret\n"})
				c := profileCommand(t, config, strings.Fields(strings.ReplaceAll(tt.args, "RC", filepath.Join(filepath.Dir(config), "rc")))...)
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				return c
			}
			temporary := func() string { return filepath.Join(filepath.Dir(config), ".portknock-*") }
			check := func() (isNew bool) {
				t.Helper()
				text, err := os.ReadFile(config)
				if err != nil {
					t.Fatal(err)
				}
				if isNew = want.Match(text); !isNew && string(text) != tt.old {
					t.Fatalf("the file is neither the old one nor the new one:\n%s", text)
				}
				for file, want := range map[string]string{"vps.key": key, "vps.hmac": hmac} {
					if text, err := os.ReadFile(filepath.Join(filepath.Dir(config), file)); err != nil || string(text) != want {
						t.Fatalf("%s: %q, %v", file, text, err)
					}
				}
				file, err := profile.Load(config)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range file.Entries()[:len(file.Entries())-1] { // the last one is Host *
					serverOf(t, lookUp(t, config, e.Patterns[0]))
				}
				return isNew
			}
			began := time.Now()
			if err := start().Wait(); err != nil || !check() {
				t.Fatalf("the command failed: %v", err)
			}
			took := time.Since(began)
			changed, left := 0, 0
			for n := range rounds {
				c := start()
				if n%2 == 0 {
					time.Sleep(rand.N(took + took/4))
				} else { // while the command writes
					lock := filepath.Join(filepath.Dir(config), ".lock")
					for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
						if _, err := os.Stat(lock); err == nil {
							break
						}
					}
					time.Sleep(rand.N(8 * time.Millisecond))
				}
				_ = c.Process.Kill()
				_ = c.Wait()
				if check() {
					changed++
				} else {
					again := profileCommand(t, config, c.Args[4:]...)
					leftovers, _ := filepath.Glob(temporary())
					for _, file := range leftovers {
						left++
						if err := os.Chtimes(file, time.Time{}, time.Now().Add(-2*temporaryAge)); err != nil {
							t.Fatal(err)
						}
					}
					// import overwrites no key, not even one that it has written itself.
					out, err := again.CombinedOutput()
					if err != nil && !(name == "import" && bytes.Contains(out, []byte("exists already"))) {
						t.Fatalf("%v\n%s", err, out)
					}
					check()
				}
				if leftovers, _ := filepath.Glob(temporary()); len(leftovers) > 0 {
					t.Fatalf("left behind: %v", leftovers)
				}
			}
			t.Logf("killed %d times: %d changes were complete, %d temporary files were left behind", rounds, changed, left)
		})
	}
}
