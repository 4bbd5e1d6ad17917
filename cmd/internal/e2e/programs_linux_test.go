package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// randomFile writes a file of that many bytes that no compression shortens.
func randomFile(t testing.TB, size int) string {
	t.Helper()
	data := make([]byte, size)
	rand.Read(data)
	path := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func checksum(t testing.TB, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// TestCopies has the programs above ssh copy 200 MB each way they know.
func TestCopies(t *testing.T) {
	lab.Require(t, "scp", "sftp", "rsync")
	bothWays(t, func(t *testing.T, r *rig) {
		data := randomFile(t, 200<<20)
		want := checksum(t, data)
		for _, tt := range []struct {
			name string
			copy func(to string) // from data, by way of the server
		}{
			{"scp up", func(to string) { r.client.Run(t, "scp", "-q", "-F", r.config, data, "vps:"+to) }},
			{"scp down", func(to string) { r.client.Run(t, "scp", "-q", "-F", r.config, "vps:"+data, to) }},
			{"sftp", func(to string) {
				r.client.RunInput(t, strings.NewReader("put "+data+" "+to+"\n"), "sftp", "-q", "-b", "-", "-F", r.config, "vps")
			}},
			{"rsync", func(to string) { r.client.Run(t, "rsync", "-e", "ssh -F "+r.config, data, "vps:"+to) }},
		} {
			to := filepath.Join(t.TempDir(), "copy")
			tt.copy(to)
			if checksum(t, to) != want {
				t.Errorf("%s: the copy differs", tt.name)
			}
			os.Remove(to)
		}
	})
}

// TestGitClone clones a repository over ssh.
func TestGitClone(t *testing.T) {
	lab.Require(t, "git")
	bothWays(t, func(t *testing.T, r *rig) {
		dir := t.TempDir()
		r.server.Shell(t, `cd `+dir+` && git init -q origin && cd origin && echo hello >file && git add file &&
			git -c user.name=lab -c user.email=lab@example.org commit -q -m one`)
		c := r.client.Command("git", "-c", "safe.directory=*", "clone", "-q", "vps:"+dir+"/origin", dir+"/clone")
		c.Env = append(c.Env, "GIT_SSH_COMMAND=ssh -F "+r.config)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if text := lab.ReadFile(t, dir+"/clone/file"); text != "hello\n" {
			t.Errorf("%q", text)
		}
	})
}

// TestControlPersist: ssh's master in the background outlives ^C on the
// command it was started for, and portknock with it.
func TestControlPersist(t *testing.T) {
	bothWays(t, func(t *testing.T, r *rig) {
		socket := filepath.Join(t.TempDir(), "master")
		master := []string{"-F", r.config, "-o", "ControlMaster=auto", "-o", "ControlPath=" + socket, "-o", "ControlPersist=yes"}

		c := r.client.Command("ssh", append(master, "vps", "cat")...)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does
		startEcho(t, c)
		if err := syscall.Kill(-c.Process.Pid, syscall.SIGINT); err != nil { // ^C: the whole group
			t.Fatal(err)
		}
		if err := c.Wait(); err == nil {
			t.Fatal("^C did not end the command")
		}
		// Without a knock, so by way of the master or not at all.
		byMaster := []string{"-F", r.config, "-o", "ControlPath=" + socket, "-o", "ProxyCommand=false"}
		if got := sshOutput(t, r.client, append(byMaster, "vps", "echo still here")...); got != "still here\n" {
			t.Errorf("by way of the master: %q", got)
		}
		r.client.Run(t, "ssh", append(byMaster, "-O", "exit", "vps")...)
		r.noneLeft(t)
	})
}

// TestByName connects by ssh's alias and by what ssh makes of it, with the
// profile named or found by its HostName.
func TestByName(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	for _, proxy := range []string{
		"portknock -c " + r.profile + " %h %p",
		"portknock -c " + r.profile + " --profile vps %h %p",
		"portknock connect -c " + r.profile + " --profile vps %n %p",
	} {
		config := r.sshd.ClientConfig(t, "Host box", "HostName "+r.addr().String(),
			"ProxyCommand "+strings.Replace(proxy, "%n", "vps", 1))
		if got := sshOutput(t, r.client, "-F", config, "box", "echo in"); got != "in\n" {
			t.Errorf("%s: %q", proxy, got)
		}
	}
}

// TestKnockCommand knocks for programs that connect by themselves.
func TestKnockCommand(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	if out := r.client.Run(t, "portknock", "knock", "-c", r.profile, "vps"); out != "" {
		t.Errorf("it says %q", out)
	}
	r.expect(t, r.client, lab.Open)
	// What completes a connection is held back for 200 ms, and on a busy machine
	// it may take longer to end it.
	traces := func() int { return strings.Count(r.sshd.Log.String(), "Connection from") }
	left := true
	for try := 0; left && try < 5; try++ {
		before := traces()
		if out := r.attacker.Run(t, "portknock", "knock", "-c", r.profile, "--wait", "vps", "22"); out != "" {
			t.Errorf("it says %q", out)
		}
		r.expect(t, r.attacker, lab.Open)
		left = traces() > before
	}
	if left {
		t.Errorf("waiting for the port left traces in sshd's log:\n%s", r.sshd.Log)
	}
}
