package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestAddressesFilterAndAlternateFamilies(t *testing.T) {
	ip := netip.MustParseAddr
	for _, test := range []struct {
		host, family string
		answer       []netip.Addr
		want         []netip.Addr
	}{
		{"192.0.2.9", "", nil, []netip.Addr{ip("192.0.2.9")}},
		{"::ffff:192.0.2.9", "", nil, []netip.Addr{ip("192.0.2.9")}},
		{"fe80::1%eth0", "", nil, []netip.Addr{ip("fe80::1%eth0")}},
		{"fe80::1%eth0", "ip4", nil, nil},
		{"vps", "ip", []netip.Addr{v4, v6}, []netip.Addr{v4, v6}},
		{"vps", "", []netip.Addr{ip("::1"), ip("::2"), v4, v4, home}, []netip.Addr{ip("::1"), v4, ip("::2"), home}},
		{"vps", "", []netip.Addr{v4, ip("::1"), ip("::2")}, []netip.Addr{v4, ip("::1"), ip("::2")}},
		{"vps", "ip6", []netip.Addr{v4, v6}, []netip.Addr{v6}},
		{"vps", "ip4", []netip.Addr{v6}, nil},
		{"vps", "", nil, nil},
	} {
		d := Dialer{
			Family:  test.family,
			Resolve: func(context.Context, string) ([]netip.Addr, error) { return test.answer, nil },
		}
		got, err := d.Addresses(t.Context(), test.host)
		if !slices.Equal(got, test.want) || (err == nil) != (test.want != nil) {
			t.Errorf("host %q, family %q: addresses %v, error %v, want addresses %v", test.host, test.family, got, err, test.want)
		}
	}
}

// TestNameIsResolvedOnce: the first answer holds for all rounds, even if the address of
// the name changes while the port is closed. Knocks and connection go to the same address.
func TestNameIsResolvedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeNet(t, func(netip.Addr, int) (time.Duration, error) { return 30 * ms, errRefused })
		d := f.dialer()
		asked := byte(0)
		d.Resolve = func(context.Context, string) ([]netip.Addr, error) {
			asked++
			return []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, asked})}, nil
		}
		if _, err := d.Connect(t.Context(), "vps", 22); err == nil {
			t.Fatal("Connect returned a connection, want an error")
		}
		if asked != 1 || len(f.syns) != 1 {
			t.Errorf("Resolve was called %d times, and these addresses were dialed: %v; want one of each", asked, f.syns)
		}
	})
}

// TestLiteralAddressIsNotResolved: a literal address is used as it is, with its zone, or
// is an error if its family is excluded.
func TestLiteralAddressIsNotResolved(t *testing.T) {
	for _, host := range []string{"fe80::1%eth0", "2001:db8::1", "192.0.2.1"} {
		addrs, err := new(Dialer).Addresses(t.Context(), host)
		if err != nil || len(addrs) != 1 || addrs[0].String() != host {
			t.Errorf("%s: addresses %v, error %v, want the literal address", host, addrs, err)
		}
	}
	_, err := (&Dialer{Family: "ip6"}).Addresses(t.Context(), "192.0.2.1")
	if _, ok := errors.AsType[*ResolveError](err); !ok || err.Error() != `cannot resolve "192.0.2.1": no IPv6 address` {
		t.Error(err)
	}
}

// TestFailedResolveIsResolveError: the error is a ResolveError if the name is unknown,
// and if the time is up during the lookup. The error of a canceled lookup contains
// context.Canceled.
func TestFailedResolveIsResolveError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFakeNet(t, nil).dialer()
		cause := &net.DNSError{Err: "no such host", Name: "vps", IsNotFound: true}
		d.Resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, cause }
		_, err := d.Connect(t.Context(), "vps", 22)
		if _, ok := errors.AsType[*ResolveError](err); !ok || err.Error() != `cannot resolve "vps": no such host` {
			t.Errorf("unknown name: error %v", err)
		}

		d.Resolve = func(ctx context.Context, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		start := time.Now()
		_, err = d.Connect(t.Context(), "vps", 22)
		if _, ok := errors.AsType[*ResolveError](err); !ok || time.Since(start) != d.Timeout {
			t.Errorf("lookup without an answer: error %v after %v, want a ResolveError after 10s", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(ms, cancel)
		if _, err = d.Connect(ctx, "vps", 22); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled lookup: error %v, want context.Canceled", err)
		}
	})
}

// TestFamilyWithoutAnswerIsNotAwaited: if one family gets no answer, the answer for the
// other family is used. This holds for names that search domains do not complete.
func TestFamilyWithoutAnswerIsNotAwaited(t *testing.T) {
	type reply struct {
		after time.Duration
		addrs []netip.Addr
		err   error
	}
	notFound := &net.DNSError{Err: "no such host", IsNotFound: true}
	servfail := &net.DNSError{Err: "server misbehaving", IsTemporary: true}
	timeout := &net.DNSError{Err: context.DeadlineExceeded.Error(), IsTimeout: true}
	other := []netip.Addr{home}
	for _, test := range []struct {
		name    string
		host    string
		asGiven bool
		replies map[string]reply // keyed by network and name; a lookup without a reply here never ends by itself
		took    time.Duration
		want    []netip.Addr
		late    []netip.Addr // addresses of the other family that came later
		err     error
		asked   int // number of lookups
	}{{
		name: "the joint lookup answers within 300 ms", host: "vps.example", asGiven: true,
		replies: map[string]reply{"ip vps.example": {after: 299 * ms, addrs: []netip.Addr{v6, v4}}},
		took:    299 * ms, want: []netip.Addr{v6, v4}, asked: 1,
	}, {
		name: "the joint lookup finds no such host", host: "vps.example", asGiven: true,
		replies: map[string]reply{"ip vps.example": {after: 299 * ms, err: notFound}},
		took:    299 * ms, err: notFound, asked: 1,
	}, {
		name: "the DNS server fails at once", host: "vps.example", asGiven: true,
		replies: map[string]reply{"ip vps.example": {after: 10 * ms, err: servfail}},
		took:    10 * ms, err: servfail, asked: 1,
	}, {
		name: "IPv6 gets no answer", host: "vps.example", asGiven: true,
		replies: map[string]reply{"ip4 vps.example.": {after: 10 * ms, addrs: []netip.Addr{v4}}},
		took:    360 * ms, want: []netip.Addr{v4}, asked: 3,
	}, {
		name: "IPv4 gets no answer", host: "vps.example", asGiven: true,
		replies: map[string]reply{"ip6 vps.example.": {after: 10 * ms, addrs: []netip.Addr{v6}}},
		took:    360 * ms, want: []netip.Addr{v6}, asked: 3,
	}, {
		name: "IPv6 gets a late answer", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip4 vps.example.": {after: 10 * ms, addrs: []netip.Addr{v4}},
			"ip6 vps.example.": {after: 70 * ms, addrs: []netip.Addr{v6}},
		},
		took: 360 * ms, want: []netip.Addr{v4}, late: []netip.Addr{v6}, asked: 3,
	}, {
		name: "IPv4 gets a late answer", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip4 vps.example.": {after: 9 * time.Second, addrs: []netip.Addr{v4}},
			"ip6 vps.example.": {after: 10 * ms, addrs: []netip.Addr{v6}},
		},
		took: 360 * ms, want: []netip.Addr{v6}, late: []netip.Addr{v4}, asked: 3,
	}, {
		name: "the joint lookup finds another machine in a search domain, late", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip vps.example":   {after: 400 * ms, addrs: other},
			"ip4 vps.example.": {after: 10 * ms, addrs: []netip.Addr{v4}},
		},
		took: 360 * ms, want: []netip.Addr{v4}, asked: 3,
	}, {
		name: "both get an answer when they are asked alone", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip4 vps.example.": {after: 10 * ms, addrs: []netip.Addr{v4}},
			"ip6 vps.example.": {after: 40 * ms, addrs: []netip.Addr{v6}},
		},
		took: 340 * ms, want: []netip.Addr{v6, v4}, asked: 3,
	}, {
		name: "the name has no IPv6 address, and the joint lookup gets no answer", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip4 vps.example.": {after: 10 * ms, addrs: []netip.Addr{v4}},
			"ip6 vps.example.": {after: 20 * ms, err: notFound},
		},
		took: 320 * ms, want: []netip.Addr{v4}, asked: 3,
	}, {
		name: "the joint lookup answers during the lookups of each family", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip vps.example":   {after: 340 * ms, addrs: []netip.Addr{v6, v4}},
			"ip4 vps.example.": {after: 10 * ms, addrs: other},
		},
		took: 340 * ms, want: []netip.Addr{v6, v4}, asked: 3,
	}, {
		name: "the joint lookup finds the name in a search domain", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip vps.example":   {after: 500 * ms, addrs: []netip.Addr{v4}},
			"ip4 vps.example.": {after: 10 * ms, err: notFound},
			"ip6 vps.example.": {after: 10 * ms, err: notFound},
		},
		took: 500 * ms, want: []netip.Addr{v4}, asked: 3,
	}, {
		name: "the joint lookup finds no such host during the lookups of each family", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip vps.example":   {after: 340 * ms, err: notFound},
			"ip4 vps.example.": {after: 10 * ms, addrs: other},
		},
		took: 340 * ms, err: notFound, asked: 3,
	}, {
		name: "the joint lookup fails during the lookups of each family", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip vps.example":   {after: 400 * ms, err: servfail},
			"ip4 vps.example.": {after: 200 * ms, addrs: []netip.Addr{v4}},
		},
		took: 550 * ms, want: []netip.Addr{v4}, asked: 3,
	}, {
		name: "all lookups fail", host: "vps.example", asGiven: true,
		replies: map[string]reply{
			"ip vps.example":   {after: 400 * ms, err: servfail},
			"ip4 vps.example.": {after: 200 * ms, err: timeout},
			"ip6 vps.example.": {after: 200 * ms, err: timeout},
		},
		took: 500 * ms, err: servfail, asked: 3,
	}, {
		name: "no lookup gets an answer", host: "vps.example", asGiven: true,
		took: 10 * time.Second, err: context.DeadlineExceeded, asked: 3,
	}, {
		name: "the resolver tries search domains first", host: "vps",
		replies: map[string]reply{
			"ip vps":   {after: 5 * time.Second, addrs: []netip.Addr{v4}},
			"ip4 vps.": {after: 10 * ms, addrs: other},
		},
		took: 5 * time.Second, want: []netip.Addr{v4}, asked: 1,
	}, {
		name: "the name has a final dot", host: "vps.",
		replies: map[string]reply{"ip4 vps.": {after: 10 * ms, addrs: []netip.Addr{v4}}},
		took:    360 * ms, want: []netip.Addr{v4}, asked: 3,
	}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				start := time.Now()
				asked := make(chan string, 10)
				lookup := lookupFunc(func(ctx context.Context, network, host string) ([]netip.Addr, error) {
					asked <- network + " " + host
					r, ok := test.replies[network+" "+host]
					if !ok {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					time.Sleep(r.after)
					return r.addrs, r.err
				})
				got, late, err := lookup.bothFamilies(ctx, test.host, test.asGiven)
				if !slices.Equal(got, test.want) || !errors.Is(err, test.err) {
					t.Errorf("addresses %v, error %v, want %v, %v", got, err, test.want, test.err)
				}
				if took := time.Since(start); took != test.took {
					t.Errorf("took %v, want %v", took, test.took)
				}
				if late != nil {
					if a := <-late; !slices.Equal(a.addrs, test.late) {
						t.Errorf("late addresses %v, want %v", a.addrs, test.late)
					}
				} else if test.late != nil {
					t.Errorf("no late addresses, want %v", test.late)
				}
				if len(asked) != test.asked {
					t.Errorf("%d lookups, want %d", len(asked), test.asked)
				}
			})
		})
	}
}

// TestLateAnswerAddsTarget: an address whose answer comes late becomes a target beside the
// others. If the others have no route, Connect waits for it. If they have failed for another
// reason, Connect does not wait.
func TestLateAnswerAddsTarget(t *testing.T) {
	for _, test := range []struct {
		name  string
		knock bool
		v4    error         // what a dial of the IPv4 address, or its knock, returns at once; nil for no answer
		after time.Duration // how long the IPv6 lookup takes
		want  error
		took  time.Duration
	}{
		{"IPv4 does not answer", true, nil, 2 * time.Second, nil, 2300 * ms},
		{"IPv4 is refused, not yet open", true, errRefused, 2 * time.Second, nil, 2300 * ms},
		{"IPv4 has no route", true, errNoRoute, 2 * time.Second, nil, 2300 * ms},
		{"IPv4 has no route, and IPv6 has no answer", true, errNoRoute, time.Hour, errNoRoute, 10 * time.Second},
		{"the IPv4 port is closed for good", false, errRefused, 2 * time.Second, errRefused, 360 * ms},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeNet(t, func(to netip.Addr, _ int) (time.Duration, error) {
					switch {
					case to == v6:
						return 0, nil
					case test.v4 == nil:
						return -1, nil
					}
					return 0, test.v4
				})
				if test.v4 == errNoRoute {
					f.noRoute = []netip.Addr{v4}
				}
				d := f.dialer()
				if !test.knock {
					d.Knock = nil
				}
				d.Resolve = nil
				d.lookup = func(ctx context.Context, network, _ string) ([]netip.Addr, error) {
					after := map[string]time.Duration{"ip4": 10 * ms, "ip6": test.after}[network]
					if network == "ip" {
						after = time.Hour
					}
					select {
					case <-time.After(after):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					return map[string][]netip.Addr{"ip4": {v4}, "ip6": {v6}}[network], nil
				}
				var resolved [][]netip.Addr
				d.Trace = func(e Event) {
					if e.Kind == Resolved {
						resolved = append(resolved, e.Addrs)
					}
				}
				start := time.Now()
				conn, err := d.Connect(t.Context(), "vps.example", 22)
				if conn != nil {
					conn.Close()
				}
				if took := time.Since(start); !errors.Is(err, test.want) || took != test.took {
					t.Errorf("error %v after %v, want %v after %v", err, took, test.want, test.took)
				}
				want := [][]netip.Addr{{v4}}
				if test.want == nil {
					want = append(want, []netip.Addr{v6})
				}
				if !slices.EqualFunc(resolved, want, slices.Equal) {
					t.Errorf("addresses %v, want %v", resolved, want)
				}
			})
		})
	}
}

func TestNdotsReadsResolvConf(t *testing.T) {
	for conf, want := range map[string]int{
		"":                                    1,
		"nameserver 192.0.2.53\nsearch lan\n": 1,
		"options ndots:5\n":                   5,
		"search lan\noptions timeout:1 ndots:2 rotate": 2,
		"options ndots:2\noptions ndots:3\n":           3,
		"# options ndots:2\n;options ndots:3\n":        1,
		"options ndots:0":                              0,
		"options ndots:99":                             15,
		"options ndots:-1":                             0,
		"options ndots:":                               0,
		"options ndots":                                1,
	} {
		if got := ndots(conf); got != want {
			t.Errorf("%q: %d, want %d", conf, got, want)
		}
	}
}
