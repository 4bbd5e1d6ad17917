package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// newJourney is a rig on nftables and IPv4 with the guard loaded.
func newJourney(t testing.TB) *rig {
	t.Helper()
	r := newRig(t, lab.Firewalls[0], lab.IPv4, "Sequence 7001/udp 8003/tcp 9005/udp")
	header(t, r.Server, r.rules, "load")
	return r
}

// bothWays runs a test on a journey of portknock's own stream, and on one of a
// socket that is ssh's.
func bothWays(t *testing.T, test func(*testing.T, *rig)) {
	for _, fdpass := range []bool{false, true} {
		t.Run(fmt.Sprintf("fdpass=%v", fdpass), func(t *testing.T) {
			t.Parallel()
			r := newJourney(t)
			r.fdpass = fdpass
			r.config = r.sshConfig(t, r.profile)
			test(t, r)
		})
	}
}

// randomFile writes a file of that many bytes that no compression shortens.
func randomFile(t testing.TB, size int64) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "data"))
	if err == nil {
		_, err = io.CopyN(f, rand.Reader, size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return f.Name()
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
			{"scp up", func(to string) { r.Client.Run(t, "scp", "-q", "-F", r.config, data, "vps:"+to) }},
			{"scp down", func(to string) { r.Client.Run(t, "scp", "-q", "-F", r.config, "vps:"+data, to) }},
			{"sftp", func(to string) {
				r.Client.RunInput(t, strings.NewReader("put "+data+" "+to+"\n"), "sftp", "-q", "-b", "-", "-F", r.config, "vps")
			}},
			{"rsync", func(to string) { r.Client.Run(t, "rsync", "-e", "ssh -F "+r.config, data, "vps:"+to) }},
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
	t.Parallel()
	lab.Require(t, "git")
	bothWays(t, func(t *testing.T, r *rig) {
		dir := t.TempDir()
		r.Server.Shell(t, `cd `+dir+` && git init -q origin && cd origin && echo hello >file && git add file &&
			git -c user.name=lab -c user.email=lab@example.org commit -q -m one`)
		c := r.Client.Command("git", "-c", "safe.directory=*", "clone", "-q", "vps:"+dir+"/origin", dir+"/clone")
		c.Env = append(c.Env, "GIT_SSH_COMMAND=ssh -F "+r.config)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if text, err := os.ReadFile(dir + "/clone/file"); string(text) != "hello\n" {
			t.Errorf("%q, %v", text, err)
		}
	})
}

// TestControlPersist: ssh's master in the background outlives ^C on the
// command it was started for, and portknock with it.
func TestControlPersist(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, r *rig) {
		socket := filepath.Join(t.TempDir(), "master")
		master := []string{"-F", r.config, "-o", "ControlMaster=auto", "-o", "ControlPath=" + socket, "-o", "ControlPersist=yes"}

		c := r.Client.Command("ssh", append(master, "vps", "cat")...)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does
		startEcho(t, c)
		if err := syscall.Kill(-c.Process.Pid, syscall.SIGINT); err != nil { // ^C: the whole group
			t.Fatal(err)
		}
		if err := c.Wait(); err == nil {
			t.Fatal("^C did not end the command")
		}
		// Without a knock, so by way of the master or not at all.
		if got := sshOutput(t, r.Client, "-F", r.config, "-o", "ProxyCommand=false", "-o", "ControlPath="+socket, "vps", "echo still here"); got != "still here\n" {
			t.Errorf("by way of the master: %q", got)
		}
		r.Client.Run(t, "ssh", "-F", r.config, "-o", "ControlPath="+socket, "-O", "exit", "vps")
		r.noneLeft(t)
	})
}

// noneLeft waits until no portknock runs on the client any more.
func (r *rig) noneLeft(t testing.TB) {
	t.Helper()
	lab.Require(t, "pgrep")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, err := r.Client.Try("pgrep", "-a", "portknock")
		if err != nil && out == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("left behind: %s", out)
		}
	}
}

// TestSSHTimeout: ssh gives up before portknock does, and portknock says why all
// the same, on stderr and in the log. It leaves nothing behind.
func TestSSHTimeout(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	wrong := secret(t, "config", "Host *", "Sequence 1111/udp 2222/udp", "ConnectTimeout 60")
	log := filepath.Join(t.TempDir(), "log")
	config := r.sshd.ClientConfig(t, "Host vps", "HostName "+r.Server.Addr(r.family).String(),
		"ProxyCommand portknock -c "+wrong+" --log-file "+log+" %h %p")
	began := time.Now()
	out, err := r.Client.Try("ssh", "-o", "ConnectTimeout=2", "-F", config, "vps", "true")
	if err == nil || !strings.Contains(out, "timed out") {
		t.Errorf("ssh says %q, %v", out, err)
	}
	text, _ := os.ReadFile(log)
	for _, line := range []string{
		r.Server.Addr(r.family).String() + `: port 22 did not open within [0-9.]+m?s: no answer`,
		`hint: is the profile the server's\? .*`,
	} {
		if !regexp.MustCompile(`(?m)^portknock: ` + line + `\r?$`).MatchString(out) {
			t.Errorf("%s is not in what ssh shows: %q", line, out)
		}
		if !regexp.MustCompile(`(?m)^.*\] ` + line + `$`).Match(text) {
			t.Errorf("%s is not in the log: %q", line, text)
		}
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("after %v", took)
	}
	r.noneLeft(t)
}

// TestSSHInterrupted: after ^C while portknock knocks, one line is enough, although
// ssh ends too.
func TestSSHInterrupted(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	wrong := secret(t, "config", "Host *", "Sequence 1111/udp 2222/udp", "ConnectTimeout 60")
	var said lab.Log
	config := r.sshd.ClientConfig(t, "Host vps", "HostName "+r.Server.Addr(r.family).String(), "ProxyCommand portknock -v -c "+wrong+" %h %p")
	c := r.Client.Command("ssh", "-F", config, "vps", "true")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does
	c.Stderr = &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said.Await(t, "round 0: dialing", 1)
	if err := syscall.Kill(-c.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	r.noneLeft(t)
	if !strings.HasSuffix(said.String(), "portknock: interrupted\n") || strings.Contains(said.String(), "did not open") {
		t.Errorf("it says %q", said.String())
	}
}

// TestSSHKilled: when ssh is gone without a word, portknock goes too.
func TestSSHKilled(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, r *rig) {
		c := r.Client.Command("ssh", "-F", r.config, "vps", "cat")
		startEcho(t, c)
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		r.noneLeft(t)
	})
}

// TestByName connects by ssh's alias and by what ssh makes of it, with the
// profile named or found by its HostName.
func TestByName(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	addr := r.Server.Addr(r.family).String()
	for _, proxy := range []string{
		"portknock -c " + r.profile + " %h %p",
		"portknock -c " + r.profile + " --profile vps %h %p",
		"portknock connect -c " + r.profile + " --profile vps %n %p",
	} {
		config := r.sshd.ClientConfig(t, "Host box", "HostName "+addr, "ProxyCommand "+strings.Replace(proxy, "%n", "vps", 1))
		if got := sshOutput(t, r.Client, "-F", config, "box", "echo in"); got != "in\n" {
			t.Errorf("%s: %q", proxy, got)
		}
	}
}

// TestKnockCommand knocks for programs that connect by themselves.
func TestKnockCommand(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	if out := r.Client.Run(t, "portknock", "knock", "-c", r.profile, "vps"); out != "" {
		t.Errorf("it says %q", out)
	}
	r.expect(t, r.Client, lab.Open)
	// What completes a connection is held back for 200 ms, and on a busy machine
	// it may take longer to end it.
	traces := func() int { return strings.Count(r.sshd.Log.String(), "Connection from") }
	left := true
	for try := 0; left && try < 5; try++ {
		before := traces()
		if out := r.Attacker.Run(t, "portknock", "knock", "-c", r.profile, "--wait", "vps", "22"); out != "" {
			t.Errorf("it says %q", out)
		}
		r.expect(t, r.Attacker, lab.Open)
		left = traces() > before
	}
	if left {
		t.Errorf("waiting for the port left traces in sshd's log:\n%s", r.sshd.Log)
	}
}

// TestUnreachable says what is in the way, with the exit code for it.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	r := newJourney(t)
	check := func(code int, want string, args ...string) {
		t.Helper()
		var stdout, stderr lab.Log
		c := r.Client.Command("portknock", args...)
		c.Stdout, c.Stderr = &stdout, &stderr
		if err := c.Run(); err == nil || c.ProcessState.ExitCode() != code {
			t.Errorf("%q: %v, want exit code %d", args, err, code)
		}
		said, hints := stderr.String(), strings.Count(stderr.String(), "portknock: hint: ")
		if !strings.HasPrefix(said, "portknock: "+want) || strings.Count(said, "\n")-hints != 1 || stdout.String() != "" {
			t.Errorf("%q says %q and prints %q, want %q", args, said, stdout.String(), want)
		}
		if strings.Contains(said, "7001") {
			t.Errorf("%q tells a knock: %s", args, said)
		}
	}
	nowhere := secret(t, "config", "Host vps", "HostName 198.51.100.1", "Sequence 7001/udp 8003")
	check(1, "vps: ", "-c", nowhere, "vps", "22")
	r.Client.Run(t, "nft", "add table inet out; add chain inet out output { type filter hook output priority 0; }; add rule inet out output udp dport 7001 drop")
	check(4, "vps: cannot knock at 192.0.2.1: ", "-c", r.profile, "vps", "22")
	check(4, "vps: ", "knock", "-c", r.profile, "vps")
}

// TestHints: the last answer decides which hint is shown, with a profile and
// without.
func TestHints(t *testing.T) {
	t.Parallel()
	lab.Require(t, "nft")
	client, server := lab.NewHost(t, "client"), lab.NewHost(t, "server")
	lab.Link(t, client, server)
	server.Shell(t, `nft -f - <<'END'
table inet filter {
	chain input {
		type filter hook input priority 0
		tcp dport 1 drop
		tcp dport 2 reject with tcp reset
		tcp dport 3 reject with icmpx admin-prohibited
	}
}
END`)
	here, nowhere := server.Addr(lab.IPv4).String(), "198.51.100.1"
	const (
		rejected = "the host may be off or in another network, or a firewall rejects connections"
		knocking = " until the knocks are right"
		noRoute  = "this machine has no route to the server: check the network or the VPN"
	)
	for _, tt := range []struct {
		name, addr, port string
		code             int
		hint, plain      string // with a profile and without
	}{
		{"refused", here, "2", exitClosed, "something answered: check that sshd runs and listens on port 2; if it does, a firewall rejects connections" + knocking,
			"something answered: check that sshd runs and listens on port 2; if it does, a firewall rejects connections"},
		{"prohibited", here, "3", exitClosed, rejected + knocking, rejected},
		{"no route", nowhere, "22", exitFailed, noRoute, noRoute},
		{"no answer", here, "1", exitClosed, "is the profile the server's? Compare with portknock sequence vps and the server's rules; -v tells more",
			"portknock has no profile for this host, so it did not knock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			profile := secret(t, "config", "Host vps", "HostName "+tt.addr, "Port "+tt.port, "ConnectTimeout 2", "Sequence 7001/udp 8003")
			for _, c := range []struct {
				args []string
				hint string
			}{
				{[]string{"-c", profile, "vps", tt.port}, tt.hint},
				{[]string{"--optional", "-c", "/dev/null", tt.addr, tt.port}, tt.plain},
			} {
				var said lab.Log
				cmd := client.Command("portknock", c.args...)
				cmd.Stderr = &said
				_ = cmd.Run()
				if code := cmd.ProcessState.ExitCode(); code != tt.code {
					t.Errorf("%q: exit code %d, want %d", c.args, code, tt.code)
				}
				if !strings.HasSuffix(said.String(), "\nportknock: hint: "+c.hint+"\n") {
					t.Errorf("%q says %q, want the hint %q", c.args, said.String(), c.hint)
				}
			}
		})
	}
}

// TestLoginOnAnotherPort: portknock warns once if the profile does not open ssh's
// port. The login goes on.
func TestLoginOnAnotherPort(t *testing.T) {
	t.Parallel()
	client := lab.NewHost(t, "client")
	var l net.Listener
	var err error
	client.Do(func() { l, err = net.Listen("tcp4", "127.0.0.1:2222") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	var said lab.Log
	c := client.Command("portknock", "-c", secret(t, "config", "Host *", "Sequence 7001/udp 8003"), "127.0.0.1", "2222")
	c.Stdin, c.Stderr = new(bytes.Reader), &said
	out, err := c.Output()
	if string(out) != "hello" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	const want = "portknock: 127.0.0.1: 2222/tcp is not among OpenPorts (22/tcp), so the server neither guards nor opens it: set Port or OpenPorts and load new rules\n"
	if said.String() != want {
		t.Errorf("it says %q, want %q", said.String(), want)
	}
}
