package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
)

// Trace is a list of actions that must have the same results on every firewall. Hosts
// send packets, wait, and find the guarded port open or closed.
//
//	# the attacker knocks in between
//	sequence 7001/udp 8003/tcp 9005/udp
//	set      KnockTimeout 2s
//	not      knockd
//	client   knock 1
//	attacker knock 2
//	client   knock 2 3
//	client   open
//	wait     2500ms
//	client+7 closed
//
// A host (client or attacker) does one of these: knock N... (or knock all),
// send PORT/TRANSPORT..., sweep TRANSPORT ORDER, open, closed. "open" and "closed" check
// port 22, which is the guarded port and on which the server listens. client+7 is the
// client at its seventh further address. "on" and "not" name firewalls: the trace is
// only for these, or for all except these.
type Trace struct {
	File     string // name of the trace's file, for errors
	Sequence knock.Sequence
	Settings []Setting
	On, Not  []string // names of firewalls: On selects them (all if On is empty), Not excludes them

	actions []action
}

// Setting is a keyword of a profile and its value.
type Setting struct{ Keyword, Value string }

// action is a parsed line of a trace.
type action struct {
	line   int             // line number in the file
	text   string          // text of the line
	host   string          // client or attacker; empty for wait
	source uint16          // number of a further address; 0 for the host's own address
	verb   string          // knock, send, sweep, open or closed
	steps  []knock.Step    // packets of knock and send
	sweep  knock.Transport // transport of sweep
	order  Order           // order of sweep
	wait   time.Duration   // duration of wait
}

// GuardedPort is the guarded TCP port of every trace.
const GuardedPort = 22

// maxWait bounds a single wait of a trace.
const maxWait = time.Minute

// ReadTraces reads all traces of a folder.
func ReadTraces(t TB, dir string) []*Trace {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	must(t, err)
	if len(files) == 0 {
		t.Fatalf("no traces in %s", dir)
	}
	traces := make([]*Trace, len(files))
	for i, file := range files {
		traces[i], err = ParseTrace(filepath.Base(file), ReadFile(t, file))
		must(t, err)
	}
	return traces
}

// ParseTrace reads a trace from text. Errors name file.
func ParseTrace(file, text string) (*Trace, error) {
	tr := &Trace{File: file}
	for i, line := range strings.Split(text, "\n") {
		words, _, _ := strings.Cut(line, "#")
		fields := strings.Fields(words)
		if len(fields) == 0 {
			continue
		}
		if err := tr.parseLine(i+1, fields); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
	}
	if tr.Sequence == nil {
		return nil, fmt.Errorf("%s: no sequence", file)
	}
	return tr, nil
}

func (tr *Trace) parseLine(number int, fields []string) (err error) {
	word, args := fields[0], fields[1:]
	if len(args) == 0 {
		return fmt.Errorf("%s needs arguments", word)
	}
	a := action{line: number, text: strings.Join(fields, " ")}
	switch word {
	case "sequence":
		tr.Sequence, err = knock.ParseSequence(strings.Join(args, " "))
		return err
	case "set":
		tr.Settings = append(tr.Settings, Setting{args[0], strings.Join(args[1:], " ")})
		return nil
	case "on", "not":
		for _, name := range args {
			if !slices.ContainsFunc(Firewalls, func(f Firewall) bool { return f.Name == name }) {
				return fmt.Errorf("unknown firewall %q", name)
			}
		}
		if word == "on" {
			tr.On = args
		} else {
			tr.Not = args
		}
		return nil
	case "wait":
		a.wait, err = time.ParseDuration(args[0])
		if err == nil && (a.wait <= 0 || a.wait > maxWait || len(args) > 1) {
			err = fmt.Errorf("wait needs one duration above 0 and up to %v", maxWait)
		}
	default:
		err = tr.parseAction(&a, word, args)
	}
	tr.actions = append(tr.actions, a)
	return err
}

func (tr *Trace) parseAction(a *action, host string, args []string) (err error) {
	var source string
	var hasSource bool
	a.host, source, hasSource = strings.Cut(host, "+")
	if a.host != "client" && a.host != "attacker" {
		return fmt.Errorf("unknown keyword or host %q", host)
	}
	if hasSource {
		n, err := strconv.ParseUint(source, 10, 16)
		if err != nil || n == 0 || n >= settleSources {
			return fmt.Errorf("address number %q is not from 1 to %d", source, settleSources-1)
		}
		a.source = uint16(n)
	}
	a.verb, args = args[0], args[1:]
	switch a.verb {
	case "open", "closed":
		if len(args) > 0 {
			return fmt.Errorf("%s does not take arguments", a.verb)
		}
	case "knock":
		a.steps, err = tr.pick(args)
	case "send":
		a.steps, err = knock.ParseSequence(strings.Join(args, " "))
	case "sweep":
		if len(args) != 2 || !slices.Contains([]Order{Ascending, Descending, Random}, Order(args[1])) {
			return errors.New("sweep needs tcp or udp, and ascending, descending or random")
		}
		a.order = Order(args[1])
		a.sweep, err = knock.ParseTransport(args[0])
	default:
		return fmt.Errorf("unknown action %q", a.verb)
	}
	return err
}

// pick returns the knocks of the sequence with these numbers.
func (tr *Trace) pick(numbers []string) ([]knock.Step, error) {
	if len(numbers) == 1 && numbers[0] == "all" {
		return tr.Sequence, nil
	}
	var steps []knock.Step
	for _, word := range numbers {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > len(tr.Sequence) {
			return nil, fmt.Errorf("unknown knock %q: the sequence has %d knocks", word, len(tr.Sequence))
		}
		steps = append(steps, tr.Sequence[n-1])
	}
	return steps, nil
}

// For reports whether the trace is for a firewall.
func (tr *Trace) For(f Firewall) bool {
	return (len(tr.On) == 0 || slices.Contains(tr.On, f.Name)) && !slices.Contains(tr.Not, f.Name)
}

// Run plays the trace in a new network. load must load the trace's rules on the server;
// Run calls load first.
func (tr *Trace) Run(t TB, f Firewall, family Family, load func(server *Host)) {
	t.Helper()
	if err := tr.play(t, f, family, load); err != nil {
		t.Fatal(err)
	}
}

func (tr *Trace) play(t TB, f Firewall, family Family, load func(server *Host)) error {
	t.Helper()
	Require(t, f.Programs...)
	n := New(t)
	f.Install(t, n.Server)
	n.Server.Listen(t, GuardedPort)
	load(n.Server)
	p := &player{t: t, net: n, trace: tr, async: f.Async, family: family, lastSource: settleSources}
	for _, a := range tr.actions {
		if err := p.do(a); err != nil {
			return fmt.Errorf("%s:%d: %s: %w (%s, %v)", tr.File, a.line, a.text, err, f.Name, family)
		}
	}
	return nil
}

// settleSources is the number of the first further address that is only for
// [player.settle].
const settleSources = 60000

// player plays one trace on its network.
type player struct {
	t          TB
	net        *Net
	trace      *Trace
	async      bool // the firewall lets through connections a moment after the last knock
	family     Family
	lastSource uint16 // number of the last further address that settle has used
}

func (p *player) do(a action) error {
	host := map[string]*Host{"client": p.net.Client, "attacker": p.net.Attacker}[a.host]
	if host == nil {
		time.Sleep(a.wait) // a real sleep, because a test cannot set the kernel's clock
		return nil
	}
	from := host.Addr(p.family)
	if a.source != 0 {
		from = host.Source(p.family, a.source)
	}
	server := p.net.Server.Addr(p.family)
	switch a.verb {
	case "knock", "send":
		host.KnockFrom(p.t, from, server, a.steps...)
	case "sweep":
		host.sweep(p.t, from, server, a.sweep, a.order)
	case "open":
		if got := p.await(host, from); got != Open {
			return fmt.Errorf("port %d is %v", GuardedPort, got)
		}
	case "closed":
		if err := p.settle(); err != nil {
			return err
		}
		if got := p.probe(host, from); got == Open {
			return fmt.Errorf("port %d is %v", GuardedPort, got)
		}
	}
	return nil
}

func (p *player) probe(host *Host, from netip.Addr) State {
	return host.ProbeFrom(p.t, from, netip.AddrPortFrom(p.net.Server.Addr(p.family), GuardedPort))
}

// await probes until the port is open, or until two minutes have passed. It probes only once
// if the firewall is not async.
func (p *player) await(host *Host, from netip.Addr) State {
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if got := p.probe(host, from); got == Open || !p.async || time.Now().After(end) {
			return got
		}
	}
}

// settle makes sure that a daemon has processed all packets sent so far. It knocks from
// an unused address and waits until the daemon admits that address.
func (p *player) settle() error {
	if !p.async {
		return nil
	}
	p.lastSource++
	from := p.net.Client.Source(p.family, p.lastSource)
	p.net.Client.KnockFrom(p.t, from, p.net.Server.Addr(p.family), p.trace.Sequence...)
	if p.await(p.net.Client, from) != Open {
		return errors.New("the daemon does not admit an address that sent the whole sequence")
	}
	return nil
}
