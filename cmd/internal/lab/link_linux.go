package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Family is a version of the Internet protocol.
type Family int

// The two families. Every link carries both.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both families.
var Families = []Family{IPv4, IPv6}

// String returns "ipv4" or "ipv6".
func (f Family) String() string { return fmt.Sprintf("ipv%d", int(f)) }

// addr returns the address of a host on its segment, from a documentation prefix.
func (f Family) addr(host int) netip.Addr {
	if f == IPv4 {
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(host)})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: byte(host)})
}

// source returns the nth further address of a host. The prefix of these addresses is
// routed to the host, so that no host on the segment needs to look them up.
func (f Family) source(host int, n uint16) netip.Addr {
	if f == IPv4 {
		return netip.AddrFrom4([4]byte{10, byte(host), byte(n >> 8), byte(n)})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 5: byte(host), 14: byte(n >> 8), 15: byte(n)})
}

func (f Family) sources(host int) netip.Prefix {
	if f == IPv4 {
		return netip.PrefixFrom(f.source(host, 0), 16)
	}
	return netip.PrefixFrom(f.source(host, 0), 64)
}

func (f Family) prefix(host int) netip.Prefix {
	if f == IPv4 {
		return netip.PrefixFrom(f.addr(host), 24)
	}
	return netip.PrefixFrom(f.addr(host), 64)
}

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Link puts hosts that have no link yet on one Ethernet segment. Two hosts get a veth
// pair, more hosts get a switch. Each host has one interface, eth0, with an address
// of each family, and reaches every address of the other hosts.
func Link(t TB, hosts ...*Host) {
	t.Helper()
	assignNumbers(hosts)
	owner, batch := hosts[0], ""
	if len(hosts) == 2 {
		batch = fmt.Sprintf("link add eth0 address %s type veth peer name eth0 address %s netns %d\n",
			mac(1), mac(2), hosts[1].pid) + addressing(hosts[0], hosts)
	} else {
		owner = NewHost(t, "switch")
		batch = "link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up\n"
		for _, h := range hosts {
			batch += fmt.Sprintf("link add port%d type veth peer name eth0 address %s netns %d\n"+
				"link set port%[1]d master br0 up\n", h.number, mac(h.number), h.pid)
		}
	}
	owner.ip(t, batch)
	var all sync.WaitGroup
	for _, h := range hosts {
		if h != owner {
			all.Go(func() { h.ip(t, addressing(h, hosts)) })
		}
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, h := range hosts {
		h.awaitAddress(t)
	}
	for _, h := range hosts[1:] {
		h.awaitCarrier(t)
	}
}

// assignNumbers numbers the hosts of a new segment from 1, and tells each host its
// peers. The hosts must not have a link yet.
func assignNumbers(hosts []*Host) {
	for i, h := range hosts {
		h.number = i + 1
		for _, peer := range hosts {
			if peer != h {
				h.peers = append(h.peers, peer)
			}
		}
	}
}

// addressing returns the lines for ip(8) that make h one of hosts. Every host knows
// the hardware addresses of all others from the start. A capture therefore does not
// show neighbor discovery, and a sweep does not lose packets while a host waits for it.
func addressing(h *Host, hosts []*Host) string {
	var b strings.Builder
	b.WriteString("link set eth0 up\n")
	for _, f := range Families {
		nodad := map[Family]string{IPv6: "nodad"}[f]
		fmt.Fprintf(&b, "addr add %s dev eth0 %s\n", f.prefix(h.number), nodad)
		fmt.Fprintf(&b, "route add local %s dev lo\n", f.sources(h.number))
		for _, peer := range hosts {
			if peer.number != h.number {
				fmt.Fprintf(&b, "neigh replace %s lladdr %s nud permanent dev eth0\n", f.addr(peer.number), mac(peer.number))
				fmt.Fprintf(&b, "route add %s via %s\n", f.sources(peer.number), f.addr(peer.number))
			}
		}
	}
	return b.String()
}

func mac(host int) string { return fmt.Sprintf("02:00:00:00:00:%02x", host) }

// ip runs ip(8) in the host's network namespace only. ip(8) stays in the PID namespace of
// this process, because the PIDs in the batch belong to that namespace.
func (h *Host) ip(t TB, batch string) {
	t.Helper()
	var out lockedBuffer
	c := h.Command("ip", "-batch", "-")
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(batch), &out, &out
	var err error
	h.Do(func() { err = c.Cmd.Start() })
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		t.Errorf("%s: ip: %v\n%s%s", h.Name, err, out.bytes(), batch)
	}
}

// awaitAddress waits until the host accepts packets to its IPv6 address. The kernel adds the
// route for them in a work queue, a moment after the address.
func (h *Host) awaitAddress(t TB) {
	t.Helper()
	route := fmt.Sprintf("%x 80 ", h.Addr(IPv6).AsSlice()) // 80 is the length of the prefix
	Await(t, limit, func() string {
		if !strings.Contains(ReadFile(t, fmt.Sprintf("/proc/%d/net/ipv6_route", h.pid)), route) {
			return h.Name + " does not accept packets to its IPv6 address"
		}
		return ""
	})
}

// awaitCarrier waits until packets pass between the host and its first peer.
// When the second end of a link comes up, Linux opens the first end a moment later.
// Until then the first end loses all packets.
func (h *Host) awaitCarrier(t TB) {
	t.Helper()
	c := h.Capture(t)
	defer c.Close()
	// settle ignores an answer that comes after the wait. Each try therefore waits
	// twice as long as the one before, for the sake of busy machines.
	for wait := 2 * time.Millisecond; wait < limit; wait *= 2 {
		if c.settle(t, wait) == nil {
			return
		}
	}
	t.Fatalf("%s has no link to %s", h.Name, h.peers[0].Name)
}

// Net is the network of most tests: three hosts on one segment.
type Net struct{ Client, Server, Attacker *Host }

// New makes a Net.
func New(t TB) *Net {
	t.Helper()
	n := &Net{}
	for _, h := range []struct {
		name string
		host **Host
	}{{"server", &n.Server}, {"client", &n.Client}, {"attacker", &n.Attacker}} {
		*h.host = NewHost(t, h.name)
	}
	Link(t, n.Server, n.Client, n.Attacker)
	return n
}

// processors returns the processors that this process may run on.
var processors = sync.OnceValue(func() (list []int) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		panic(err)
	}
	for cpu := 0; len(list) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			list = append(list, cpu)
		}
	}
	return list
})

// pin keeps the calling thread on one processor. The caller must throw the thread
// away afterwards.
func pin(cpu int) {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		panic(err)
	}
}
