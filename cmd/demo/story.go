package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// event describes one line of the story.
type event struct {
	time  time.Time
	kind  kind
	actor string // the program that acts: you, gate, ssh, or go for Go's SSH client
	text  string
	err   error // how ssh failed; set only if kind is ended
}

type kind int

const (
	knocked kind = iota // the gate received a knock
	opened              // the gate opened the service's port
	closed              // the gate closed the service's port
	said                // the SSH server sent a line, and ssh printed it
	ended               // ssh ended
)

// play starts the gate, the SSH server and ssh, prints the story, and stops all of them
// before it returns.
func (d *demo) play(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel(nil)
	events := make(chan event, 16)
	report := func(e event) {
		e.time = time.Now()
		select {
		case events <- e:
		case <-ctx.Done():
		}
	}

	clientKey, client, err := newKey()
	if err != nil {
		return err
	}
	_, host, err := newKey()
	if err != nil {
		return err
	}
	finish := make(chan struct{})
	server := newSSHServer(host, client.PublicKey(), finish)
	g, err := newGate(openFor)
	if err != nil {
		return err
	}
	tasks.Go(func() {
		serve := func(c net.Conn) { tasks.Go(func() { server.serve(ctx, c) }) }
		if err := g.run(ctx, serve, report); err != nil {
			cancel(err)
		}
	})

	block, err := ssh.MarshalPrivateKey(clientKey, "portknock demo")
	if err != nil {
		return err
	}
	profile := fmt.Sprintf("Host demo\n    HostName %v\n    Sequence %v\n    KnockDelay %v\n", g.addr, g.sequence(), knockDelay)
	for name, text := range map[string]string{
		"config":      profile,
		"ssh_config":  sshConfig(d.portknock, g.service),
		"known_hosts": knownhosts.Line([]string{g.service.String()}, host.PublicKey()) + "\n",
		"key":         string(pem.EncodeToMemory(block)),
	} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}

	actor, connect := "ssh", func(out io.Writer) error { return runSSH(ctx, d.ssh, d.dir, "hello", out) }
	if !sshWorks(ctx, d.ssh, d.dir) {
		config := &ssh.ClientConfig{
			User:            "demo",
			Auth:            []ssh.AuthMethod{ssh.PublicKeys(client)},
			HostKeyCallback: ssh.FixedHostKey(host.PublicKey()),
		}
		actor, connect = "go", func(out io.Writer) error {
			return runGoSSH(ctx, d.portknock, d.dir, "hello", g.service, config, out)
		}
		fmt.Fprintln(d.out, "This machine has no working ssh, so the demo uses Go's SSH client instead.")
	}
	fmt.Fprintf(d.out, "\nThe profile for portknock:\n\n%s\nThe line for ssh's configuration:\n\nProxyCommand portknock %%h %%p\n"+
		"\n\"gate\" stands in for the server's firewall. \"you\" connects without knocks.\n", profile)

	st := &story{out: d.out, events: events, began: time.Now()}
	st.chapter("1. The port is closed")
	if err := st.tryPort(ctx, g.service); err != nil {
		return err
	}
	st.chapter("2. ssh demo hello")
	st.tell(event{time: time.Now(), actor: actor, text: "starts; portknock sends the knocks"})
	tasks.Go(func() {
		err := connect(&lines{pass: func(s string) { report(event{kind: said, actor: actor, text: s}) }})
		report(event{kind: ended, actor: actor, text: "exit status 0", err: err})
	})
	if err := st.until(ctx, func() bool { return st.said > 0 }); err != nil {
		return err
	}
	st.chapter("3. The opening ends; the session stays open")
	if err := st.until(ctx, func() bool { return !st.open }); err != nil {
		return err
	}
	if err := st.tryPort(ctx, g.service); err != nil {
		return err
	}
	close(finish)
	if err := st.until(ctx, func() bool { return st.ended }); err != nil {
		return err
	}
	st.chapter("4. The port is closed again")
	if err := st.tryPort(ctx, g.service); err != nil {
		return err
	}
	fmt.Fprint(d.out, "\nThe demo used only loopback and leaves nothing behind.\nTo use portknock with your own server, read \"Quick start\" in README.md.\n")
	return nil
}

// story prints events and keeps the state that follows from them.
type story struct {
	out    io.Writer
	events <-chan event
	began  time.Time

	open  bool // the service's port is open
	said  int  // number of lines that ssh has printed
	ended bool // ssh has ended
}

func (s *story) chapter(title string) { fmt.Fprintf(s.out, "\n%s\n", title) }

// tell prints one event, with the milliseconds since the story began.
func (s *story) tell(e event) {
	ms := float64(e.time.Sub(s.began)) / float64(time.Millisecond)
	fmt.Fprintf(s.out, "%10.1f ms  %-4s  %s\n", ms, e.actor, e.text)
}

// until prints events until done returns true. It calls done before each event.
func (s *story) until(ctx context.Context, done func() bool) error {
	for !done() {
		select {
		case e := <-s.events:
			switch e.kind {
			case opened:
				s.open = true
			case closed:
				s.open = false
			case said:
				s.said++
			case ended:
				if ctx.Err() != nil {
					return context.Cause(ctx) // the end of ctx has ended ssh
				}
				if e.err != nil {
					return e.err
				}
				s.ended = true
			}
			s.tell(e)
			if s.ended && !done() {
				return errors.New("ssh ended before the SSH server had sent everything")
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// tryPort connects to the service and prints how that fails. If it does not fail, another
// program has taken the port, and the error is errPortTaken.
func (s *story) tryPort(ctx context.Context, service netip.AddrPort) error {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	c, err := dialer.DialContext(ctx, "tcp", service.String())
	if err == nil {
		c.Close()
		return errPortTaken
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	answer := "connection refused"
	if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
		answer = "no answer"
	}
	s.tell(event{time: time.Now(), actor: "you", text: fmt.Sprintf("connect to %v: %s", service, answer)})
	return nil
}
