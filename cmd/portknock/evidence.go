package main

import (
	"bufio"
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/proxy"
)

// evidence is what portknock has found out about the way to a port. An answer proves that a
// packet has arrived. Silence proves nothing. The command check fills all fields. A login has
// only some of them.
type evidence struct {
	at      time.Time        // when the evidence was collected, by this computer's clock
	profile *profile.Profile // its Scheme is "" if the host has no profile
	port    uint16

	key      string          // fingerprint of the profile's key; "" if it has none, or if unknown
	changed  bool            // the profile has other knocks than those that were deployed
	oldOpens bool            // the knocks that were deployed open the port, and those of the profile do not
	clock    clockState      // whether this computer's clock is synchronized; "" if unknown
	ssh      *sshEvidence    // nil if ssh was not asked
	lookups  []lookup        // lookups of the host's name, one for each family; nil for an address
	targets  []target        // addresses of the host, one for each family
	server   *serverEvidence // nil if the server was not asked
	sshPorts []uint16        // ports other than port where sshd answered, found from outside
}

// clockState says whether a clock is synchronized: yes, no, or "" if that is unknown.
type clockState string

const (
	clockRight clockState = "yes"
	clockFree  clockState = "no"
)

// sshEvidence is what ssh does for the host.
type sshEvidence struct {
	port           uint16
	connectTimeout time.Duration // 0 for no limit
	direct         bool          // ssh connects from this computer, by itself or through portknock
	portknock      bool          // the ProxyCommand is portknock
	wantsSocket    bool          // ProxyUseFdpass is yes
	passesSocket   bool          // the ProxyCommand has -F
	noProfile      bool          // portknock finds no profile for the host that ssh passes on
	hostName       string        // host that ssh passes on
}

// lookup is the lookup of a name's addresses of one family.
type lookup struct {
	family string // IPv4 or IPv6
	addrs  []netip.Addr
	err    error // why addrs is empty; otherwise nil
	silent bool  // no answer came
	took   time.Duration
}

// target is an address of the host, and what came back from there.
type target struct {
	addr    netip.Addr
	from    netip.Addr // local address of the packets; invalid if unknown
	noRoute bool       // this computer has no route to addr
	unsent  error      // why the knocks could not be sent; nil if they have left

	others   map[uint16]portState // other ports; nil if none was tried
	before   portState            // the port before the knocks; "" if unknown
	admitted bool                 // the port closed when the opening of an earlier login expired
	knocks   []knockAnswer        // the knocks in their order; nil if unknown
	after    portState            // the port after the knocks; "" if it was not tried
	round    int                  // the round that opened the port, from 0
	took     time.Duration        // time from the first knock to the answer of the port
	banner   string               // first line of an open port; "" if none came
}

// knockAnswer is what came back for a knock, in any round.
type knockAnswer struct {
	transport knock.Transport
	state     portState
}

// arrived reports whether the knock has reached the host. A rejected knock may not have: a router
// can reject packets for a host that is off.
func (k knockAnswer) arrived() bool { return k.state == portOpen || k.state == portRefused }

// family returns the name of the target's family.
func (t *target) family() string { return familyOf(t.addr) }

func familyOf(addr netip.Addr) string {
	if addr.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// has reports whether any packet has an answer of these kinds.
func (t *target) has(kinds ...portState) bool {
	is := func(s portState) bool { return slices.Contains(kinds, s) }
	return is(t.before) || is(t.after) || slices.ContainsFunc(slices.Collect(maps.Values(t.others)), is) ||
		slices.ContainsFunc(t.knocks, func(k knockAnswer) bool { return is(k.state) })
}

// alive reports whether the host has answered any packet.
func (t *target) alive() bool { return t.has(portOpen, portRefused) }

// quiet reports whether many packets have left, and nobody has answered any of them. A firewall
// that rejects all ports but one is an answer too.
func (t *target) quiet() bool { return t.others != nil && !t.has(portOpen, portRefused, portRejected) }

// opened reports whether the port is open after the knocks, and was closed before.
func (t *target) opened() bool { return t.after == portOpen && t.before != portOpen }

// answerLimit is how long a packet waits for its answer. The kernel repeats a SYN after one
// second, and a repeated knock could be wrong for the server.
const answerLimit = 900 * time.Millisecond

// lookUpFamilies returns the addresses of a name, with one lookup for each family that the dialer uses.
func lookUpFamilies(ctx context.Context, family, host string) []lookup {
	networks := map[string]string{"IPv4": "ip4", "IPv6": "ip6"}
	all := slices.DeleteFunc([]lookup{{family: "IPv4"}, {family: "IPv6"}}, func(l lookup) bool {
		return family != "" && networks[l.family] != family
	})
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	var wait sync.WaitGroup
	for i := range all {
		l := &all[i]
		wait.Go(func() {
			began := time.Now()
			var addrs []netip.Addr
			addrs, l.err = net.DefaultResolver.LookupNetIP(ctx, networks[l.family], host)
			l.took = time.Since(began)
			for _, a := range addrs {
				l.addrs = append(l.addrs, a.Unmap())
			}
			dns, ok := errors.AsType[*net.DNSError](l.err)
			l.silent = ok && dns.IsTimeout || errors.Is(l.err, context.DeadlineExceeded)
		})
	}
	wait.Wait()
	return all
}

// lookupLimit is the time after which a lookup counts as not answered.
const lookupLimit = 3 * time.Second

// stateOf returns the state of a port, given the error of a dial or of a read.
func stateOf(err error) portState {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return portSilent
	}
	switch {
	case err == nil:
		return portOpen
	case proxy.IsRefused(err):
		return portRefused
	}
	return portRejected
}

// moreTelling returns the better one of two states of one port: an answer says more than
// silence, and an open port says more than a closed one.
func moreTelling(a, b portState) portState {
	order := []portState{portOpen, portRefused, portRejected, portSilent}
	for _, s := range order {
		if a == s || b == s {
			return s
		}
	}
	return a
}

// probe sends one SYN to a port of the target. The caller closes the connection, which is nil
// unless the port is open.
func (t *target) probe(ctx context.Context, port uint16) (net.Conn, portState) {
	d := net.Dialer{Timeout: answerLimit, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.from, 0))}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(t.addr, port).String())
	if err != nil {
		return nil, stateOf(err)
	}
	_ = conn.(*net.TCPConn).SetLinger(0) // Close then sends a RST, and sshd does not log the connection
	return conn, portOpen
}

// state is probe without the connection.
func (t *target) state(ctx context.Context, port uint16) portState {
	conn, state := t.probe(ctx, port)
	if conn != nil {
		conn.Close()
	}
	return state
}

// tryOthers probes other ports, to find out whether the host answers at all. A program that
// begins as sshd does is noted too.
func (t *target) tryOthers(ctx context.Context, ports []uint16) (sshPorts []uint16) {
	if t.others == nil {
		t.others = map[uint16]portState{}
	}
	var mu sync.Mutex
	var wait sync.WaitGroup
	for _, port := range ports {
		wait.Go(func() {
			conn, state := t.probe(ctx, port)
			isSSH := conn != nil && strings.HasPrefix(readBanner(conn), sshBanner)
			mu.Lock()
			defer mu.Unlock()
			t.others[port] = state
			if isSSH {
				sshPorts = append(sshPorts, port)
			}
		})
	}
	wait.Wait()
	slices.Sort(sshPorts)
	return sshPorts
}

const sshBanner = "SSH-"

// readBanner returns the first line that comes from a connection, and closes it. It returns ""
// if no line comes.
func readBanner(conn net.Conn) string {
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	line, err := bufio.NewReaderSize(conn, 256).ReadSlice('\n')
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(line)), "?")
}

// prober knocks at a target like a login, but with a socket for each knock, which sees the
// answer.
type prober struct {
	picker  knock.Picker
	log     *logger
	port    uint16
	limit   time.Duration  // for all rounds
	answers sync.WaitGroup // rounds whose answers are not noted yet
	mu      sync.Mutex     // guards the knocks of all targets
}

// knockPause is the shortest pause after a knock. The sockets of two knocks belong to two
// goroutines, and the pause keeps their order.
const knockPause = 20 * time.Millisecond

// maxRefusals is the number of rounds at a port that is refused before the knocks and after them.
const maxRefusals = 4

// run works through rounds until the port answers, or until the limit.
func (p *prober) run(ctx context.Context, t *target) {
	began := time.Now()
	for n := 0; ctx.Err() == nil && (n == 0 || time.Since(began) < p.limit); n++ {
		if t.unsent = p.round(ctx, t, n); t.unsent != nil {
			return
		}
		conn, state := p.await(ctx, t)
		p.log.say(verbose, "%v: round %d: the port is %s", t.addr, n, state)
		if t.after == "" || state != portSilent {
			t.after, t.round, t.took = state, n, time.Since(began)
		}
		switch {
		case conn != nil:
			t.banner = readBanner(conn)
			return
		case state == portRefused && (t.before == portSilent || n == maxRefusals-1): // the guard let the first one through
			return
		case state != portSilent:
			time.Sleep(250 * time.Millisecond)
		}
	}
}

// round sends the knocks of a round. Their answers are noted in t after at most answerLimit.
func (p *prober) round(ctx context.Context, t *target, n int) error {
	r, err := p.picker.Round(now(), t.from, t.addr, n)
	if err != nil || len(r.Send) == 0 {
		return err
	}
	p.log.say(secrets, "%v: round %d: %v", t.addr, n, r.Send)
	states := make([]portState, len(r.Send))
	var wait sync.WaitGroup
	for i, step := range r.Send {
		if err := p.send(ctx, &wait, &states[i], t, step); err != nil {
			return err
		}
		time.Sleep(max(r.Pause, knockPause))
	}
	p.answers.Go(func() {
		wait.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		t.note(r.Send, states)
	})
	return nil
}

// note stores the states of the knocks of one round, unless an earlier round has told more. A
// round may send the first knock once more than others do.
func (t *target) note(sent knock.Sequence, states []portState) {
	if t.knocks == nil {
		for _, step := range sent {
			t.knocks = append(t.knocks, knockAnswer{step.Transport, portSilent})
		}
	}
	more := max(0, len(states)-len(t.knocks))
	for i, state := range states[more:] {
		t.knocks[i].state = moreTelling(t.knocks[i].state, state)
	}
}

// send sends a knock. It returns when the knock has left, and wait then waits for the answer.
func (p *prober) send(ctx context.Context, wait *sync.WaitGroup, state *portState, t *target, step knock.Step) error {
	to := netip.AddrPortFrom(t.addr, step.Port).String()
	local := netip.AddrPortFrom(t.from, 0)
	switch step.Transport {
	case knock.UDP:
		// The socket is connected, so that the kernel gives it the ICMP message that answers.
		conn, err := (&net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(local)}).DialContext(ctx, "udp", to)
		if err == nil {
			if _, err = conn.Write(step.Payload); err != nil {
				conn.Close()
			}
		}
		if err != nil {
			return withoutAddress(err)
		}
		wait.Go(func() {
			defer conn.Close()
			_ = conn.SetReadDeadline(time.Now().Add(answerLimit))
			_, err := conn.Read(make([]byte, 1))
			*state = stateOf(err)
		})
		return nil
	case knock.TCP:
		begun := make(chan struct{})
		d := net.Dialer{Timeout: answerLimit, LocalAddr: net.TCPAddrFromAddrPort(local), Control: func(_, _ string, _ syscall.RawConn) error {
			close(begun)
			return nil
		}}
		ended := make(chan struct{})
		wait.Go(func() {
			defer close(ended)
			conn, err := d.DialContext(ctx, "tcp", to)
			if *state = stateOf(err); conn != nil {
				_ = conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
		})
		select {
		case <-begun:
		case <-ended: // without a socket
		}
		return nil
	}
	err := knock.Sender{From: t.from}.Send(ctx, t.addr, knock.Sequence{step}, 0)
	*state = stateOf(err)
	if *state == portSilent {
		return nil
	}
	return err
}

// await sends a SYN at once, and another one a little later, for servers that open the port
// only after the first SYN. It returns a connection if the port is open.
func (p *prober) await(ctx context.Context, t *target) (net.Conn, portState) {
	var early net.Conn
	var state portState
	done := make(chan struct{})
	go func() {
		early, state = t.probe(ctx, p.port)
		close(done)
	}()
	select {
	case <-done:
		return early, state
	case <-time.After(answerLimit / 3):
	}
	late, lateState := t.probe(ctx, p.port)
	<-done
	if early != nil && late != nil {
		early.Close()
	} else if early != nil {
		late = early
	}
	return late, moreTelling(state, lateState)
}
