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

// sshConfig returns a configuration for ssh -F, which replaces the user's ~/.ssh/config. It
// has the lines that a user would write there, and options that keep the agent and the
// known hosts of this machine out. Its file names are relative to the folder in which ssh
// starts.
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

// quote returns path as one word of a ProxyCommand. ssh replaces each % and the letter
// after it, and then a shell reads the command. On Windows, ssh may run the command
// without a shell; if there is a shell, it is Git's. Both accept slashes.
func quote(path string) string {
	path = strings.ReplaceAll(path, "%", "%%")
	if runtime.GOOS == "windows" {
		return `"` + filepath.ToSlash(path) + `"`
	}
	return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, "$", `\$`, "`", "\\`").Replace(path) + `"`
}

// sshCommand returns a command that runs ssh in dir.
func sshCommand(ctx context.Context, path, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, append([]string{"-F", "ssh_config"}, args...)...)
	cmd.Dir = dir
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), stateIn(dir))
	if runtime.GOOS != "windows" {
		// ssh runs ProxyCommand with the user's shell, which may be nologin.
		cmd.Env = append(cmd.Env, "SHELL=/bin/sh")
	}
	return cmd
}

// stateIn returns the environment variable that makes portknock keep its state in dir, and not
// in the user's home directory.
func stateIn(dir string) string { return "XDG_STATE_HOME=" + dir }

// sshWorks reports whether ssh is installed and works. ssh does not work for a user
// without an entry in the password file, which is common in containers.
func sshWorks(ctx context.Context, path, dir string) bool {
	return path != "" && sshCommand(ctx, path, dir, "-G", "demo").Run() == nil
}

// runSSH runs a command on the server with this machine's ssh. When runSSH returns, ssh
// and portknock have ended.
func runSSH(ctx context.Context, path, dir, command string, out io.Writer) error {
	cmd := sshCommand(ctx, path, dir, "demo", command)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	return explain("ssh", cmd.Run(), &stderr)
}

// runGoSSH runs a command on the server with Go's SSH client instead of ssh. As in runSSH,
// portknock makes the connection; the client uses portknock's standard input and output.
func runGoSSH(ctx context.Context, portknock, dir, command string, service netip.AddrPort, config *ssh.ClientConfig, out io.Writer) error {
	cmd := exec.CommandContext(ctx, portknock, "-c", "config", service.Addr().String(), fmt.Sprint(service.Port()))
	cmd.Dir, cmd.Env = dir, append(os.Environ(), stateIn(dir))
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
	clientEnd, portknockEnd := net.Pipe()
	go func() {
		io.Copy(stdin, portknockEnd)
		stdin.Close()
	}()
	received := make(chan struct{})
	go func() {
		defer close(received)
		defer portknockEnd.Close()
		io.Copy(portknockEnd, stdout)
	}()
	err = session(clientEnd, command, config, out)
	clientEnd.Close()
	<-received
	if wait := cmd.Wait(); wait != nil && err != nil {
		err = wait // portknock's failure is the cause; stderr describes it
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

// explain returns the failure of a program with the program's name. If the program wrote
// to stderr, that text replaces the text of err.
func explain(name string, err error, stderr *bytes.Buffer) error {
	if err == nil {
		return nil
	}
	if said := oneLine(stderr.String()); said != "" {
		err = errors.New(said)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// oneLine joins the lines of a text that a user needs, with semicolons.
func oneLine(s string) string {
	var parts []string
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		// The go command prints a line for each download, and a line that starts with #
		// for each package that fails.
		if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "go: downloading") {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

// lines is a writer that calls pass for each complete line, without the line's end.
type lines struct {
	pass func(string)
	rest []byte // the text after the last complete line
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
