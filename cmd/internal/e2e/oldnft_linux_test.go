package e2e

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// oldNfts are versions of nft that accept a timeout for an element of a map, but do not
// pass this timeout to the kernel. They do not support the sets that tokens need.
var oldNfts = []string{oldestNft}

// oldestNft is the oldest version of nft that the rules support.
const oldestNft = "nft-1.0.2"

// eachOldNft runs a test with every old nft that is installed, in parallel.
func eachOldNft(t *testing.T, test func(*testing.T, string, lab.Family)) {
	t.Parallel()
	installed := slices.DeleteFunc(slices.Clone(oldNfts), func(nft string) bool {
		_, err := exec.LookPath(nft)
		return err != nil
	})
	if len(installed) == 0 {
		lab.Require(t, oldestNft)
	}
	for _, nft := range installed {
		t.Run(nft, func(t *testing.T) {
			eachOf(t, []lab.Firewall{nftables}, lab.Families, func(t *testing.T, _ lab.Firewall, family lab.Family) {
				test(t, nft, family)
			})
		})
	}
}

// TestOldNftRulesForgetAfterKnockTimeout: rules that the oldest supported nft
// has loaded forget the
// stage of a client that has not knocked for KnockTimeout.
func TestOldNftRulesForgetAfterKnockTimeout(t *testing.T) {
	lab.Require(t, oldestNft)
	eachOf(t, []lab.Firewall{nftables}, lab.Families, func(t *testing.T, _ lab.Firewall, family lab.Family) {
		settings, s := rotating(t, periodWithNowAt(t, middle), time.Minute)
		r := newRig(t, nftables, family, threeKnocks)
		for _, tt := range []struct {
			name     string
			settings []string
			steps    []knock.Step
		}{
			{"static", []string{threeKnocks}, sequence("7001/udp 8003/tcp 9005/udp")},
			{"rotating", settings, stepsAt(t, s, time.Now())},
		} {
			t.Run(tt.name, func(t *testing.T) {
				profile := vpsProfile(t, append([]string{"KnockTimeout 2s"}, tt.settings...)...)
				r.server.Run(t, oldestNft, "-f", emitRules(t, r.server, r.firewall, profile))
				checkTimeouts(t, r)
				if !r.admits(t, r.freshAddr(), tt.steps...) {
					t.Error("the sequence does not open port 22")
				}
				late, last := r.freshAddr(), len(tt.steps)-1
				r.client.KnockFrom(t, late, r.addr(), tt.steps[:last]...)
				r.awaitForgotten(t, late)
				if r.admits(t, late, tt.steps[last]) {
					t.Error("the last knock opens port 22 although KnockTimeout has passed")
				}
			})
		}
	})
}

// awaitForgotten waits until the kernel does not have a stage for an address.
func (r *rig) awaitForgotten(t testing.TB, addr netip.Addr) {
	t.Helper()
	stages := map[lab.Family]string{lab.IPv4: "at4_vps", lab.IPv6: "at6_vps"}[r.family]
	lab.Await(t, time.Minute, func() string {
		known := r.server.Run(t, "nft", "list", "map", "inet", "portknock", stages)
		if strings.Contains(known, addr.String()) {
			return "the client still has a stage:\n" + known
		}
		return ""
	})
}

// dynamicSet matches a set or map in the listing of nft to which packets add elements.
var dynamicSet = regexp.MustCompile(`(?m)^\t(?:set|map) (\S+) \{\n(?:\t\t.*\n)*?\t\tflags dynamic,timeout\n((?:\t\t.*\n)*?)\t\}`)

// checkTimeouts checks that each loaded set or map to which packets add elements declares
// a timeout. The kernel uses this timeout for elements that are added without one.
func checkTimeouts(t testing.TB, r *rig) {
	t.Helper()
	listing := r.server.Run(t, "nft", "list", "table", "inet", "portknock")
	sets := dynamicSet.FindAllStringSubmatch(listing, -1)
	if len(sets) == 0 || len(sets) != strings.Count(listing, "flags dynamic") {
		t.Fatalf("the pattern found %d sets, which is not every dynamic set in\n%s", len(sets), listing)
	}
	for _, set := range sets {
		if !strings.HasPrefix(set[2], "\t\ttimeout ") {
			t.Errorf("%s is declared without a timeout", set[1])
		}
	}
}

// TestTokenSetsHaveTimeouts: the sets of rules for tokens declare timeouts too. Only a
// newer nft loads these rules.
func TestTokenSetsHaveTimeouts(t *testing.T) {
	t.Parallel()
	r, _ := newTokenRig(t, nftables, lab.IPv4)
	checkTimeouts(t, r)
}

// TestOldNftLoadsNoPartOfTokenRules: an old nft loads no part of a file with tokens. Its
// error names the line that it does not support.
func TestOldNftLoadsNoPartOfTokenRules(t *testing.T) {
	eachOldNft(t, func(t *testing.T, nft string, family lab.Family) {
		settings, _ := tokens(t, periodWithNowAt(t, middle), time.Minute)
		r := newRig(t, nftables, family, settings...)
		output, err := r.server.Try(nft, "-f", r.rules)
		if err == nil || !regexp.MustCompile(regexp.QuoteMeta(r.rules)+`:\d+:`).MatchString(output) {
			t.Errorf("nft returns %v and does not name a line:\n%s", err, output)
		}
		if tables := r.server.Run(t, "nft", "list", "tables"); tables != "" {
			t.Errorf("%s has loaded the tables %s", nft, tables)
		}
	})
}

// TestScriptsWithOldNft: the verbs work with the oldest supported nft. With an older one,
// they work or leave the server as it is, with one line that names the reason.
func TestScriptsWithOldNft(t *testing.T) {
	eachOldNft(t, func(t *testing.T, nft string, family lab.Family) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "nft"), []byte("#!/bin/sh\nexec "+nft+" \"$@\"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		r := newListeningRig(t, nftables, family)
		shell := withPath(dir, dash)
		tok, _ := tokens(t, periodWithNowAt(t, middle), time.Minute)
		refused := func(s script) {
			t.Helper()
			for _, verb := range []string{"test", "load", "trial"} {
				before := r.ruleset(t)
				out, err := s.try(verb)
				if err == nil || !strings.HasPrefix(out, "nft: ") && !strings.HasPrefix(out, "portknock: nft ") || strings.Count(out, "\n") != 2 {
					t.Errorf("%s with %s returns %v and prints %q, want the reason and what it means", verb, nft, err, out)
				}
				r.expectRuleset(t, before)
			}
		}
		old := r.emitScript(t, vpsProfile(t, oldSettings()...)).with(shell)
		if out, err := old.try("test"); err != nil && nft != oldestNft {
			t.Logf("test: %s", out)
			refused(old)
			return
		} else if err != nil {
			t.Fatalf("test: %v\n%s", err, out)
		}
		old.run(t, "load")
		after := r.emitScript(t, vpsProfile(t, newSettings("OpenFor 2m")...)).with(shell)
		after.run(t, "trial", "2")
		r.awaitTrialEnd(t)
		r.expectGeneration(t, "after the trial", "old")
		after.refused(t, "the trial has ended", "keep")
		after.run(t, "trial")
		after.refused(t, "yet", "keep")
		after.refused(t, "another trial ends in", "trial")
		knocker := r.freshAddr()
		if !r.admits(t, knocker, newKnocks...) {
			t.Error("the new knocks do not open port 22")
		}
		after.run(t, "keep")
		r.expectAnswer(t, "an address that the trial admitted, after keep", knocker, 22, lab.Open)
		r.expectGeneration(t, "after keep", "new")
		checkTimeouts(t, r)
		old.run(t, "trial")
		old.run(t, "cancel")
		r.expectGeneration(t, "after cancel", "new")
		refused(r.emitScript(t, vpsProfile(t, tok...)).with(shell))
		after.run(t, "unload")
		r.expect(t, r.attacker, lab.Open)
	})
}
