package main

import (
	"bytes"
	"context"
	"encoding/pem"
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
	"golang.org/x/crypto/ssh/knownhosts"
)

// login is one login with ssh through portknock, and the SSH server that it reaches.
type login struct {
	*demo
	actor   string                // the program that logs in: ssh, or go for Go's SSH client
	start   func(*exec.Cmd) error // starts a program on the client
	service netip.AddrPort        // address and port of the server
	profile string
	server  *sshServer
	finish  func()            // makes the server send the farewell and end the session
	config  *ssh.ClientConfig // for Go's SSH client
}

// newLogin makes keys and writes the client's files.
func (d *demo) newLogin(ctx context.Context, service netip.AddrPort, profile string, start func(*exec.Cmd) error) (*login, error) {
	clientKey, client, err := newKey()
	if err != nil {
		return nil, err
	}
	_, host, err := newKey()
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(clientKey, "portknock demo")
	if err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"config":      profile,
		"ssh_config":  sshConfig(d.portknock, service),
		"known_hosts": knownhosts.Line([]string{service.String()}, host.PublicKey()) + "\n",
		"key":         string(pem.EncodeToMemory(block)),
	} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	finish := make(chan struct{})
	l := &login{
		demo: d, actor: "ssh", start: start, service: service, profile: profile,
		server: newSSHServer(host, client.PublicKey(), finish),
		finish: func() { close(finish) },
		config: &ssh.ClientConfig{
			User:            "demo",
			Auth:            []ssh.AuthMethod{ssh.PublicKeys(client)},
			HostKeyCallback: ssh.FixedHostKey(host.PublicKey()),
		},
	}
	// ssh does not work for a user without an entry in the password file, which is common
	// in containers.
	if d.ssh == "" || l.sshCommand(ctx, "-G", "demo").Run() != nil {
		l.actor = "go"
	}
	return l, nil
}

// String returns what a user writes for this login.
func (l *login) String() string {
	text := "The profile, for the client and the server:\n\n" + indent(l.profile) +
		"\nThe line in ~/.ssh/config:\n\n    ProxyCommand portknock %h %p\n"
	if l.actor == "go" {
		text += "\nThis computer has no working ssh, so the demo uses Go's SSH client (go) instead.\n"
	}
	return text
}

// run logs in, runs a command on the server, and reports each line that the server sends. When
// run returns, all programs that it has started have ended.
func (l *login) run(ctx context.Context, st *story) {
	out := &lines{pass: func(s string) { st.report(ctx, event{kind: said, actor: l.actor, text: s}) }}
	connect := l.runSSH
	if l.actor == "go" {
		connect = l.runGoSSH
	}
	err := connect(ctx, "hello", out)
	st.report(ctx, event{kind: ended, actor: l.actor, text: "exit status 0", err: err})
}

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

// sshCommand returns a command that runs ssh in l.dir.
func (l *login) sshCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := l.command(ctx, l.ssh, append([]string{"-F", "ssh_config"}, args...)...)
	cmd.WaitDelay = 10 * time.Second
	if runtime.GOOS != "windows" {
		// ssh runs ProxyCommand with the user's shell, which may be nologin.
		cmd.Env = append(cmd.Env, "SHELL=/bin/sh")
	}
	return cmd
}

// runSSH runs a command on the server with this machine's ssh.
func (l *login) runSSH(ctx context.Context, command string, out io.Writer) error {
	cmd := l.sshCommand(ctx, "demo", command)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	err := l.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return explain("ssh", err, &stderr)
}

// runGoSSH runs a command on the server with Go's SSH client instead of ssh. As in runSSH,
// portknock makes the connection; the client uses portknock's standard input and output.
func (l *login) runGoSSH(ctx context.Context, command string, out io.Writer) error {
	cmd := l.command(ctx, l.portknock, "-c", "config", l.service.Addr().String(), fmt.Sprint(l.service.Port()))
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
	if err := l.start(cmd); err != nil {
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
	err = session(clientEnd, command, l.config, out)
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
