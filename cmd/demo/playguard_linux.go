package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/portknock/portknock/knock"
)

// openFor is the duration of an opening. It is long enough to watch what happens meanwhile.
const openFor = 2 * time.Second

// guardStory makes the hosts, prints the story with the real firewall, and stops all programs
// before it returns.
func (d *demo) guardStory(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel(nil)
	st := newStory(d.out)

	you, err := newHost("you", youAddr)
	if err != nil {
		return noNetwork(err)
	}
	attacker, err := newHost("attacker", attackerAddr)
	if err != nil {
		return noNetwork(err)
	}
	service := netip.AddrPortFrom(serverAddr, 22)
	listener, err := net.Listen("tcp", service.String())
	if err != nil {
		return noNetwork(err)
	}
	defer listener.Close()
	sequence := randomSequence()
	profile := fmt.Sprintf("Host demo\n    HostName %v\n    Sequence %v\n    OpenFor  %v\n", serverAddr, sequence, openFor)
	l, err := d.newLogin(ctx, service, profile, you.start)
	if err != nil {
		return err
	}
	tasks.Go(func() {
		acceptConnections(listener, func(c net.Conn) { tasks.Go(func() { l.server.serve(ctx, c) }) })
	})
	g, err := d.emitRules(ctx)
	if err != nil {
		return err
	}
	st.began = time.Now()
	found, err := attacker.scan(ctx) // fails if this system does not allow raw sockets
	if err != nil {
		return noNetwork(err)
	}
	fmt.Fprintf(d.out, `
Three hosts in a private network on this computer:

    %s  %v
    %s  %v
    %s  %v, with an SSH server on port 22

%v`, st.paint("you", "you     "), youAddr, st.paint("attacker", "attacker"), attackerAddr,
		st.paint("server", "server  "), serverAddr, l)

	st.chapter("1. A server without a guard")
	st.tellScan(found)
	if len(found.open) == 0 {
		return errors.New("the attacker did not find the SSH server")
	}

	st.chapter("2. The server loads portknock's rules into the kernel's firewall")
	if err := g.run(ctx, "load"); err != nil {
		return err
	}
	st.tell("server", "loads the rules that `portknock emit-rules --policy drop demo` prints, with %s:", g.program)
	fmt.Fprint(d.out, "\n", indent(g.excerpt(sequence)), "\n")
	if found, err = attacker.scan(ctx); err != nil {
		return err
	}
	st.tellScan(found)
	if found.answers() > 0 {
		return errors.New("the attacker's scan got answers in spite of the rules")
	}

	st.chapter("3. The right knocks in a wrong order open nothing")
	wrong := knock.Sequence{sequence[1], sequence[0], sequence[2]}
	attacker.do(func() { err = knock.Sender{}.Send(ctx, serverAddr, wrong, time.Millisecond) })
	if err != nil {
		return err
	}
	st.tell("attacker", "knocks at %v", wrong)
	if err := st.tellAnswer(ctx, "attacker", "connects to port 22", attacker.tryPort(ctx, service)); err != nil {
		return err
	}

	st.chapter("4. ssh demo hello")
	stop := attacker.keepTrying(ctx, service)
	defer stop()
	st.tell(l.actor, "starts; portknock knocks at %v and connects", sequence)
	tasks.Go(func() { l.run(ctx, st) })
	if err := st.until(ctx, func() bool { return st.said > 0 }); err != nil {
		return err
	}
	st.tell("attacker", "tries to connect again and again; the port is open for %v only", youAddr)

	st.chapter(fmt.Sprintf("5. After %v the port is closed again; the session stays open", openFor))
	select {
	case <-time.After(openFor):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	answer := "connected"
	for answer == "connected" && ctx.Err() == nil { // the kernel may end the opening a moment later
		answer = you.tryPort(ctx, service)
	}
	if err := st.tellAnswer(ctx, "you", "connect without knocks", answer); err != nil {
		return err
	}
	tries, err := stop()
	if err != nil {
		return err
	}
	st.tell("attacker", "has tried %d times: %s", tries, noAnswer)
	l.finish()
	return st.until(ctx, func() bool { return st.ended })
}

// randomSequence returns a sequence that a scan cannot find.
func randomSequence() knock.Sequence {
	for {
		s := knock.Sequence{{Transport: knock.UDP}, {Transport: knock.TCP}, {Transport: knock.UDP}}
		for i := range s {
			s[i].Port = uint16(1024 + rand.IntN(allPorts-1024+1))
		}
		if !s.SweepFinds(func(knock.Step) bool { return true }) {
			return s
		}
	}
}

// scan scans the server from the host.
func (h *host) scan(ctx context.Context) (result scan, err error) {
	h.do(func() { result, err = scanPorts(ctx, h.addr, serverAddr) })
	return result, err
}

// tellScan prints what a scan has found.
func (s *story) tellScan(result scan) {
	found := "no port answers"
	if result.answers() > 0 {
		found = fmt.Sprintf("%d closed, open: %v", result.closed, strings.Trim(fmt.Sprint(result.open), "[]"))
	}
	s.tell("attacker", "scans all %d TCP ports: %s", allPorts, found)
}

// tryPort connects to the service without knocks, and returns the answer.
func (h *host) tryPort(ctx context.Context, service netip.AddrPort) (answer string) {
	h.do(func() {
		dialer := net.Dialer{Timeout: 500 * time.Millisecond}
		answer = answerOf(dialer.DialContext(ctx, "tcp", service.String()))
	})
	return answer
}

// tellAnswer prints how the service's port has answered. Any answer is an error.
func (s *story) tellAnswer(ctx context.Context, actor, action, answer string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.tell(actor, "%s: %s", action, answer)
	if answer != noAnswer {
		return errors.New("the guarded port has answered")
	}
	return nil
}

// keepTrying tries the service's port from a host until the caller calls stop. stop returns
// how often it has tried, and an error if the port has answered.
func (h *host) keepTrying(ctx context.Context, service netip.AddrPort) (stop func() (tries int, err error)) {
	ctx, cancel := context.WithCancel(ctx)
	var tries int
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil && err == nil {
			if answer := h.tryPort(ctx, service); answer != noAnswer && ctx.Err() == nil {
				err = fmt.Errorf("the guarded port has answered the attacker: %s", answer)
			}
			tries++
		}
	}()
	return func() (int, error) {
		cancel()
		<-done
		return tries, err
	}
}

// guardRules are the server's rules, in a file.
type guardRules struct {
	*demo
	program string // program that loads the rules
	text    string
}

// emitRules makes the rules with portknock, and checks that this system can load them.
func (d *demo) emitRules(ctx context.Context) (*guardRules, error) {
	g := &guardRules{demo: d, program: "nft"}
	format := "nftables"
	if _, err := exec.LookPath("nft"); err != nil {
		g.program, format = "iptables", "iptables"
		if _, err := exec.LookPath("iptables"); err != nil {
			return nil, unavailable("neither nft nor iptables is installed")
		}
	}
	const file = "rules"
	out, err := d.command(ctx, d.portknock, "-c", "config", "emit-rules", "--policy", "drop", "--format", format, "--output", file, "demo").CombinedOutput()
	if err != nil {
		return nil, explain("portknock emit-rules", err, bytes.NewBuffer(out))
	}
	text, err := os.ReadFile(filepath.Join(d.dir, file))
	if err != nil {
		return nil, err
	}
	g.text = string(text)
	if err := g.run(ctx, "test"); err != nil {
		return nil, unavailable(err.Error())
	}
	return g, nil
}

// run runs a command that the header of the rules names.
func (g *guardRules) run(ctx context.Context, verb string) error {
	_, command, _ := strings.Cut(g.text, "\n# "+verb+": ")
	command, _, _ = strings.Cut(command, "\n")
	cmd := g.command(ctx, "sh", "-c", command)
	// Only root can write the usual lock file of iptables.
	cmd.Env = append(cmd.Env, "XTABLES_LOCKFILE="+filepath.Join(g.dir, "lock"))
	out, err := cmd.CombinedOutput()
	return explain(g.program, err, bytes.NewBuffer(out))
}

// lineWidth is the number of bytes that excerpt leaves of a rule.
const lineWidth = 92

// excerpt returns what the header says about the profile, and the first rules that name one
// of its ports.
func (g *guardRules) excerpt(sequence knock.Sequence) string {
	ports := regexp.MustCompile(fmt.Sprintf(`\b(22|%d|%d|%d)\b`, sequence[0].Port, sequence[1].Port, sequence[2].Port))
	header, rules, _ := strings.Cut(g.text, "# This file")
	text, left := header+"...\n", 4
	for line := range strings.Lines(rules) {
		if line = strings.TrimSpace(line); left > 0 && ports.MatchString(line) {
			if len(line) > lineWidth {
				line = line[:lineWidth] + " ..."
			}
			text += line + "\n"
			left--
		}
	}
	return text + "...\n"
}
