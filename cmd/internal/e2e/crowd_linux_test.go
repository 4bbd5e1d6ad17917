package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// patience is the ConnectTimeout of clients on a busy machine. A client without a busy
// machine or other load connects in milliseconds.
const patience = "ConnectTimeout=60"

// newCrowdRig makes a rig in which a service listens on port 22, behind three knocks. The
// server remembers a knock for longer than a client tries. The profile long opens port 2210
// after ten knocks.
func newCrowdRig(t testing.TB, f lab.Firewall, family lab.Family) *rig {
	t.Helper()
	r := newListeningRig(t, f, family)
	r.server.Listen(t, 2210)
	r.server.Listen(t, 2211)
	addr := "HostName " + r.addr().String()
	r.profile = r.vpsProfile(t, threeKnocks, "KnockTimeout 2m", "Host long", addr, "OpenPorts 2210",
		"Sequence 10421/udp 10697/tcp 10556/udp 10459/tcp 10205/udp 10333/tcp 10918/udp 10777/tcp 10132/udp 10845/tcp",
		"Host other", addr, "OpenPorts 2211", "Sequence 7103/tcp 8107/tcp 9109/tcp")
	r.emitRules(t, "long", "other")
	r.runHeaderLine(t, "load")
	return r
}

// connect connects to a port of the server with a profile, from an address of the client.
func (r *rig) connect(t testing.TB, from netip.Addr, profile string, port uint16) {
	t.Helper()
	out, err := r.client.Try("portknock", "-c", r.profile, "-o", patience, "-o", "BindAddress="+from.String(), profile, fmt.Sprint(port))
	if err != nil {
		t.Errorf("%s, %v: profile %s from %v: %v\n%s", r.firewall.Name, r.family, profile, from, err, out)
	}
}

// TestFiftyClientsOfOneAddressConnectAtOnce: 50 clients behind one NAT share the stages of
// their address, and all of them connect.
func TestFiftyClientsOfOneAddressConnectAtOnce(t *testing.T) {
	eachOf(t, kernelFirewalls(), onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newCrowdRig(t, f, family)
		from := r.freshAddr()
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { r.connect(t, from, "vps", lab.GuardedPort) })
		}
		all.Wait()
	})
}

// TestTwoProfilesOfOneAddressConnectAtOnce: the knocks of each profile are wrong knocks for
// the other one, but both clients connect. A shell starts both, so that they begin within a
// millisecond.
func TestTwoProfilesOfOneAddressConnectAtOnce(t *testing.T) {
	eachOf(t, kernelFirewalls(), onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newCrowdRig(t, f, family)
		for _, second := range []string{"long 2210", "other 2211"} {
			for range 8 {
				argv := "portknock -c " + r.profile + " -o " + patience + " -o BindAddress=" + r.freshAddr().String()
				line := fmt.Sprintf("%s vps %d & %[1]s %[3]s; second=$?; wait $! && exit $second", argv, lab.GuardedPort, second)
				if out, err := r.client.Try("sh", "-c", line); err != nil {
					t.Fatalf("profiles vps and %s: %v\n%s", second, err, out)
				}
			}
		}
	})
}

// connectInFlood connects while the attacker sends 5,000 packets a second.
func (r *rig) connectInFlood(t testing.TB, packet func(i int) lab.Packet) {
	t.Helper()
	connected, ended := make(chan struct{}), make(chan struct{})
	flooded := make(chan struct{}, 1)
	go func() {
		defer close(ended)
		next := time.Now()
		for sent := 0; ; sent += 500 {
			r.attacker.Flood(t, 500, func(i int) lab.Packet { return packet(sent + i) })
			next = next.Add(100 * time.Millisecond)
			time.Sleep(time.Until(next))
			select {
			case flooded <- struct{}{}:
			case <-connected:
				return
			default:
			}
		}
	}()
	<-flooded
	r.connect(t, r.freshAddr(), "vps", lab.GuardedPort)
	close(connected)
	<-ended
}

// forgedKnock returns a knock from one of the attacker's 65,535 further addresses.
func (r *rig) forgedKnock(i int, s knock.Step) lab.Packet {
	return r.packetFrom(r.attacker.Source(r.family, uint16(i%65535+1)), s)
}

// packetFrom returns a knock from any address.
func (r *rig) packetFrom(from netip.Addr, s knock.Step) lab.Packet {
	return lab.KnockPacket(netip.AddrPortFrom(from, 10000), r.addr(), s)
}

// TestClientsConnectDuringFlood: packets to any ports and wrong knocks from other addresses
// do not keep a client out. Neither do first knocks from fewer addresses than the rules
// remember.
func TestClientsConnectDuringFlood(t *testing.T) {
	eachOf(t, kernelFirewalls(), onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newCrowdRig(t, f, family)
		r.connectInFlood(t, func(i int) lab.Packet {
			return r.forgedKnock(i*7919, knock.Step{Transport: knock.Transport(i % 2), Port: uint16(i*31 + 1)})
		})
		first := sequence("7001/udp")[0]
		r.attacker.Flood(t, 60_000, func(i int) lab.Packet { return r.forgedKnock(i, first) })
		r.connect(t, r.freshAddr(), "vps", lab.GuardedPort)
	})
}

// TestClientConnectsAfterForgedWrongKnocks: an attacker who sends wrong knocks from the
// address of a client keeps the client out at most until the attacker stops.
func TestClientConnectsAfterForgedWrongKnocks(t *testing.T) {
	eachOf(t, kernelFirewalls(), onlyIPv4, func(t *testing.T, f lab.Firewall, family lab.Family) {
		r := newCrowdRig(t, f, family)
		from := r.freshAddr()
		var client sync.WaitGroup
		wrong := func(i int) lab.Packet {
			if i == 1000 { // the flood goes on for about a second
				client.Go(func() { r.connect(t, from, "vps", lab.GuardedPort) })
			}
			return r.packetFrom(from, knock.Step{Transport: knock.UDP, Port: 5000})
		}
		r.attacker.Flood(t, 150_000, wrong)
		client.Wait()
	})
}
