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

// randomFile writes a file of size random bytes, which no compression can shorten.
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

// TestSCPSFTPAndRsyncCopyFiles: scp, sftp and rsync copy 200 MB through portknock. Only
// scp copies in both directions.
func TestSCPSFTPAndRsyncCopyFiles(t *testing.T) {
	lab.Require(t, "scp", "sftp", "rsync")
	withAndWithoutFDPass(t, func(t *testing.T, r *rig) {
		data := randomFile(t, 200<<20)
		want := checksum(t, data)
		for _, tt := range []struct {
			name string
			copy func(to string) // copies the file data to this path, through ssh
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

// TestGitClonesOverSSH: git clones a repository with ssh through portknock.
func TestGitClonesOverSSH(t *testing.T) {
	lab.Require(t, "git")
	withAndWithoutFDPass(t, func(t *testing.T, r *rig) {
		dir := t.TempDir()
		r.server.Shell(t, `cd `+dir+` && git init -q origin && cd origin && echo hello >file && git add file &&
			git -c user.name=lab -c user.email=lab@example.org commit -q -m one`)
		c := r.client.Command("git", "-c", "safe.directory=*", "clone", "-q", "vps:"+dir+"/origin", dir+"/clone")
		c.Env = append(c.Env, "GIT_SSH_COMMAND=ssh -F "+r.config)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if text := lab.ReadFile(t, dir+"/clone/file"); text != "hello\n" {
			t.Errorf("the cloned file contains %q, want hello", text)
		}
	})
}

// TestSSHMasterSurvivesInterrupt: a ControlPersist master of ssh runs on after ^C on the
// command that started the master. The master's portknock runs on too.
func TestSSHMasterSurvivesInterrupt(t *testing.T) {
	withAndWithoutFDPass(t, func(t *testing.T, r *rig) {
		socket := filepath.Join(t.TempDir(), "master")
		master := []string{"-F", r.config, "-o", "ControlMaster=auto", "-o", "ControlPath=" + socket, "-o", "ControlPersist=yes"}

		c := r.client.Command("ssh", append(master, "vps", "cat")...)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a shell also starts a process group
		startEcho(t, c)
		if err := syscall.Kill(-c.Process.Pid, syscall.SIGINT); err != nil { // ^C signals the whole process group
			t.Fatal(err)
		}
		if err := c.Wait(); err == nil {
			t.Fatal("^C did not end the command")
		}
		// These options allow only a connection through the master, because their
		// ProxyCommand fails.
		throughMaster := []string{"-F", r.config, "-o", "ControlPath=" + socket, "-o", "ProxyCommand=false"}
		if got := sshOutput(t, r.client, append(throughMaster, "vps", "echo still here")...); got != "still here\n" {
			t.Errorf("through the master, ssh prints %q, want still here", got)
		}
		r.client.Run(t, "ssh", append(throughMaster, "-O", "exit", "vps")...)
		r.awaitNoPortknock(t)
	})
}

// TestSSHAliasAndHostNameFindProfile: portknock connects by ssh's alias (%n) and by the
// address that ssh has found for it (%h). --profile names the profile, or portknock finds
// the profile by its HostName.
func TestSSHAliasAndHostNameFindProfile(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	for _, proxy := range []string{
		"portknock -c " + r.profile + " %h %p",
		"portknock -c " + r.profile + " --profile vps %h %p",
		"portknock connect -c " + r.profile + " --profile vps %n %p",
	} {
		config := r.sshd.ClientConfig(t, "Host box", "HostName "+r.addr().String(),
			"ProxyCommand "+strings.Replace(proxy, "%n", "vps", 1))
		if got := sshOutput(t, r.client, "-F", config, "box", "echo in"); got != "in\n" {
			t.Errorf("ProxyCommand %s: ssh prints %q, want in", proxy, got)
		}
	}
}

// TestKnockCommandOpensPortSilently: portknock knock opens the port for programs that
// connect without portknock. It prints nothing, and with --wait leaves no connection in
// sshd's log.
func TestKnockCommandOpensPortSilently(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	if out := r.client.Run(t, "portknock", "knock", "-c", r.profile, "vps"); out != "" {
		t.Errorf("portknock knock prints %q, want nothing", out)
	}
	r.expect(t, r.client, lab.Open)
	// The packet that completes a connection is delayed for 200 ms. On a busy machine
	// portknock may need longer to end the connection, so the test tries up to 5 times.
	connections := func() int { return strings.Count(r.sshd.Log.String(), "Connection from") }
	logged := true
	for try := 0; logged && try < 5; try++ {
		before := connections()
		if out := r.attacker.Run(t, "portknock", "knock", "-c", r.profile, "--wait", "vps", "22"); out != "" {
			t.Errorf("portknock knock prints %q, want nothing", out)
		}
		r.expect(t, r.attacker, lab.Open)
		logged = connections() > before
	}
	if logged {
		t.Errorf("knock --wait left connections in sshd's log:\n%s", r.sshd.Log)
	}
}
