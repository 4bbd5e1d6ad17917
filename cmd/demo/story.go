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

// event is something to tell.
type event struct {
	at   time.Time
	kind kind
	who  string
	text string
	err  error // with ended
}

type kind int

const (
	knocked kind = iota // at the gate
	opened
	closed
	said  // by the SSH server, through ssh
	ended // ssh
)

// play sets the scene, tells the story, and ends all that took part in it.
func (d *demo) play(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel(nil)
	events := make(chan event, 16)
	report := func(e event) {
		e.at = time.Now()
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
	goOn := make(chan struct{})
	server := newSSHServer(host, client.PublicKey(), goOn)
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

	who, connect := "ssh", func(out io.Writer) error { return runSSH(ctx, d.ssh, d.dir, "hello", out) }
	if !sshWorks(ctx, d.ssh, d.dir) {
		config := &ssh.ClientConfig{
			User:            "demo",
			Auth:            []ssh.AuthMethod{ssh.PublicKeys(client)},
			HostKeyCallback: ssh.FixedHostKey(host.PublicKey()),
		}
		who, connect = "go", func(out io.Writer) error {
			return runGoSSH(ctx, d.portknock, d.dir, "hello", g.service, config, out)
		}
		fmt.Fprintln(d.out, "There is no ssh that works here, so Go's SSH client stands in for it.")
	}
	fmt.Fprintf(d.out, "\nThe profile:\n\n%s\nThe line for ssh:\n\nProxyCommand portknock %%h %%p\n", profile)

	st := &story{out: d.out, events: events, began: time.Now()}
	st.chapter("1. The port is closed")
	if err := st.tryPort(ctx, g.service); err != nil {
		return err
	}
	st.chapter("2. ssh demo hello")
	st.tell(event{at: time.Now(), who: who, text: "starts; portknock knocks for it"})
	tasks.Go(func() {
		err := connect(&lines{pass: func(s string) { report(event{kind: said, who: who, text: s}) }})
		report(event{kind: ended, who: who, text: "exit status 0", err: err})
	})
	if err := st.until(ctx, func() bool { return st.said > 0 }); err != nil {
		return err
	}
	st.chapter("3. The opening ends, the session does not")
	if err := st.until(ctx, func() bool { return !st.open }); err != nil {
		return err
	}
	if err := st.tryPort(ctx, g.service); err != nil {
		return err
	}
	close(goOn)
	if err := st.until(ctx, func() bool { return st.ended }); err != nil {
		return err
	}
	st.chapter("4. The port is closed again")
	if err := st.tryPort(ctx, g.service); err != nil {
		return err
	}
	fmt.Fprint(d.out, "\nAll of it was on loopback, and nothing of it is left.\nWith a server of your own: README.md, Quick start.\n")
	return nil
}

// story prints what happens and keeps where it stands.
type story struct {
	out    io.Writer
	events <-chan event
	began  time.Time

	open  bool // the service's port
	said  int  // lines from the server
	ended bool // ssh
}

func (s *story) chapter(title string) { fmt.Fprintf(s.out, "\n%s\n", title) }

// tell prints one line, with the milliseconds since the beginning.
func (s *story) tell(e event) {
	ms := float64(e.at.Sub(s.began)) / float64(time.Millisecond)
	fmt.Fprintf(s.out, "%10.1f ms  %-4s  %s\n", ms, e.who, e.text)
}

// until tells what happens until done, which it asks before each event.
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
					return context.Cause(ctx) // that has ended it
				}
				if e.err != nil {
					return e.err
				}
				s.ended = true
			}
			s.tell(e)
			if s.ended && !done() {
				return errors.New("ssh has ended before the server was done")
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// tryPort tells that a connection to the service is refused; if it is not, the
// port has become somebody else's.
func (s *story) tryPort(ctx context.Context, service netip.AddrPort) error {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	c, err := dialer.DialContext(ctx, "tcp", service.String())
	if err == nil {
		c.Close()
		return errTaken
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	answer := "refused"
	if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
		answer = "no answer"
	}
	s.tell(event{at: time.Now(), who: "you", text: fmt.Sprintf("connect to %v: %s", service, answer)})
	return nil
}
