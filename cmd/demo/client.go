package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// sshConfig is what a user would have in ~/.ssh/config, and what keeps that
// file, the agent and the known hosts of this machine out of it. The files are
// those of the folder in which ssh is started.
func sshConfig(portknock string, service netip.AddrPort) string {
	return fmt.Sprintf(`Host demo
    HostName %v
    Port %d
    User demo
    ProxyCommand %s -c config %%h %%p
    IdentityFile key
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile known_hosts
    StrictHostKeyChecking yes
    PreferredAuthentications publickey
    BatchMode yes
    ControlMaster no
    LogLevel ERROR
`, service.Addr(), service.Port(), quote(portknock))
}

// quote makes one word of a path for ProxyCommand: ssh replaces what begins
// with %, and a shell reads the rest. On Windows there need not be a shell, and
// if there is one it is Git's; both take slashes.
func quote(path string) string {
	path = strings.ReplaceAll(path, "%", "%%")
	if runtime.GOOS == "windows" {
		return `"` + filepath.ToSlash(path) + `"`
	}
	return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, "$", `\$`, "`", "\\`").Replace(path) + `"`
}

// sshCommand prepares a call of ssh in dir.
func sshCommand(ctx context.Context, path, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, append([]string{"-F", "ssh_config"}, args...)...)
	cmd.Dir = dir
	cmd.WaitDelay = 10 * time.Second
	if runtime.GOOS != "windows" {
		// ssh has ProxyCommand run by the user's shell, which may be nologin.
		cmd.Env = append(os.Environ(), "SHELL=/bin/sh")
	}
	return cmd
}

// sshWorks reports whether ssh is there and of use. It refuses a user without
// an entry in the password file, as is usual in containers.
func sshWorks(ctx context.Context, path, dir string) bool {
	return path != "" && sshCommand(ctx, path, dir, "-G", "demo").Run() == nil
}

// runSSH runs a command on the server with the ssh of this machine. When it
// returns, ssh and portknock have ended.
func runSSH(ctx context.Context, path, dir, command string, out io.Writer) error {
	cmd := sshCommand(ctx, path, dir, "demo", command)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	return explain("ssh", cmd.Run(), &stderr)
}

// runGoSSH does what runSSH does without ssh: as there, portknock makes the
// connection, and the client speaks to its standard input and output.
func runGoSSH(ctx context.Context, portknock, dir, command string, service netip.AddrPort, config *ssh.ClientConfig, out io.Writer) error {
	cmd := exec.CommandContext(ctx, portknock, "-c", "config", service.Addr().String(), fmt.Sprint(service.Port()))
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ours, theirs := net.Pipe()
	go func() {
		io.Copy(stdin, theirs)
		stdin.Close()
	}()
	received := make(chan struct{})
	go func() {
		defer close(received)
		defer theirs.Close()
		io.Copy(theirs, stdout)
	}()
	err = session(ours, command, config, out)
	ours.Close()
	<-received
	if wait := cmd.Wait(); wait != nil && err != nil {
		err = wait // the cause: portknock has said why on stderr
	}
	return explain("Go's SSH client", err, &stderr)
}

func session(c net.Conn, command string, config *ssh.ClientConfig, out io.Writer) error {
	conn, channels, requests, err := ssh.NewClientConn(c, "demo", config)
	if err != nil {
		return err
	}
	client := ssh.NewClient(conn, channels, requests)
	defer client.Close()
	s, err := client.NewSession()
	if err != nil {
		return err
	}
	s.Stdout = out
	return s.Run(command)
}

// explain adds to the failure of a program what it said.
func explain(name string, err error, stderr *bytes.Buffer) error {
	if err == nil {
		return nil
	}
	if said := oneLine(stderr.String()); said != "" {
		err = errors.New(said)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// oneLine joins what the lines of a text say.
func oneLine(s string) string {
	var parts []string
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		// The go command announces what it downloads and which package fails.
		if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "go: downloading") {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

// lines passes on each line that is written to it.
type lines struct {
	pass func(string)
	rest []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		l.rest = rest
		l.pass(strings.TrimSuffix(string(line), "\r"))
	}
}
