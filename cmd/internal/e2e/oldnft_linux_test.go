package e2e

import (
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// oldNfts are versions of nft that accept a timeout for a map's element, and do
// not tell the kernel. They do not know what tokens need.
var oldNfts = []string{"nft-0.9.8", "nft-1.0.2"}

// eachOldNft runs a test with every old nft that is installed, in parallel.
func eachOldNft(t *testing.T, test func(*testing.T, string, lab.Family)) {
	t.Parallel()
	installed := slices.DeleteFunc(slices.Clone(oldNfts), func(nft string) bool {
		_, err := exec.LookPath(nft)
		return err != nil
	})
	if len(installed) == 0 {
		lab.Require(t, oldNfts[0])
	}
	for _, nft := range installed {
		t.Run(nft, func(t *testing.T) {
			eachOf(t, []lab.Firewall{nftables}, lab.Families, func(t *testing.T, _ lab.Firewall, family lab.Family) {
				test(t, nft, family)
			})
		})
	}
}

// TestOldNftKnockTimeout: rules that an old nft has loaded forget a client that
// has not knocked for KnockTimeout.
func TestOldNftKnockTimeout(t *testing.T) {
	eachOldNft(t, func(t *testing.T, nft string, family lab.Family) {
		settings, s := rotating(t, standing(t, middle), time.Minute)
		r := newRig(t, nftables, family, threeKnocks)
		for _, tt := range []struct {
			name     string
			settings []string
			steps    []knock.Step
		}{
			{"static", []string{threeKnocks}, sequence("7001/udp 8003/tcp 9005/udp")},
			{"rotating", settings, at(t, s, time.Now())},
		} {
			t.Run(tt.name, func(t *testing.T) {
				profile := vps(t, append([]string{"KnockTimeout 2s"}, tt.settings...)...)
				r.server.Run(t, nft, "-f", emit(t, r.server, r.firewall, profile))
				checkTimeouts(t, r)
				if !r.admits(t, r.visitor(), tt.steps...) {
					t.Error("the sequence does not open")
				}
				late, last := r.visitor(), len(tt.steps)-1
				r.client.KnockFrom(t, late, r.addr(), tt.steps[:last]...)
				r.awaitForgotten(t, late)
				if r.admits(t, late, tt.steps[last]) {
					t.Error("the last knock opens after KnockTimeout")
				}
			})
		}
	})
}

// awaitForgotten waits until the kernel no longer has a stage for an address.
func (r *rig) awaitForgotten(t testing.TB, addr netip.Addr) {
	t.Helper()
	stages := map[lab.Family]string{lab.IPv4: "at4_vps", lab.IPv6: "at6_vps"}[r.family]
	lab.Await(t, 10*time.Second, func() string {
		known := r.server.Run(t, "nft", "list", "map", "inet", "portknock", stages)
		if strings.Contains(known, addr.String()) {
			return "the client still has a stage:\n" + known
		}
		return ""
	})
}

// dynamicSet is a set or map, as nft lists it, that packets add elements to.
var dynamicSet = regexp.MustCompile(`(?m)^\t(?:set|map) (\S+) \{\n(?:\t\t.*\n)*?\t\tflags dynamic,timeout\n((?:\t\t.*\n)*?)\t\}`)

// checkTimeouts checks that every set in force that packets add elements to has a
// timeout of its own, for what is added without one.
func checkTimeouts(t testing.TB, r *rig) {
	t.Helper()
	listing := r.server.Run(t, "nft", "list", "table", "inet", "portknock")
	sets := dynamicSet.FindAllStringSubmatch(listing, -1)
	if len(sets) == 0 || len(sets) != strings.Count(listing, "flags dynamic") {
		t.Fatalf("%d sets found in\n%s", len(sets), listing)
	}
	for _, set := range sets {
		if !strings.HasPrefix(set[2], "\t\ttimeout ") {
			t.Errorf("%s is declared without a timeout", set[1])
		}
	}
}

// TestTokenTimeouts: rules for tokens, which an old nft does not load, have the
// timeouts too.
func TestTokenTimeouts(t *testing.T) {
	t.Parallel()
	r, _ := newTokens(t, nftables, lab.IPv4)
	checkTimeouts(t, r)
}

// TestOldNftTokens: an old nft refuses a file with tokens as a whole, and names the
// line that it does not understand.
func TestOldNftTokens(t *testing.T) {
	eachOldNft(t, func(t *testing.T, nft string, family lab.Family) {
		settings, _ := tokens(t, standing(t, middle), time.Minute)
		r := newRig(t, nftables, family, settings...)
		said, err := r.server.Try(nft, "-f", r.rules)
		if err == nil || !regexp.MustCompile(regexp.QuoteMeta(r.rules)+`:\d+:`).MatchString(said) {
			t.Errorf("%v\n%s", err, said)
		}
		if tables := r.server.Run(t, "nft", "list", "tables"); tables != "" {
			t.Errorf("%s has loaded %s", nft, tables)
		}
	})
}
