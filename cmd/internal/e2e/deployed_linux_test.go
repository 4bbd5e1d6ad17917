package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/cmd/internal/lab"
	"github.com/portknock/portknock/knock"
)

// otherKnocks is a profile setting with another sequence than threeKnocks.
const otherKnocks = "Sequence 9101/tcp 9103/udp 9107/udp"

// otherKey is another key than windowKey, and otherFingerprint is its fingerprint.
var otherKey, otherFingerprint = func() (text, fingerprint string) {
	k := knock.KeyFrom([]byte("another key, which has 32 bytes."))
	return k.Reveal(), k.Fingerprint()
}()

// writeDeployed writes the file that says that the server has rules made from these settings. The
// key has this fingerprint, which is "" for a scheme without keys.
func (r *rig) writeDeployed(t testing.TB, fingerprint string, settings ...string) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(r.profile), "deployed")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lines := append([]string{
		`# {"time":"2026-11-20T23:30:00Z","format":"nftables","id":"1","version":"1","server":"vps","fingerprint":"` + fingerprint + `"}`,
		"Host vps",
	}, settings...)
	if err := os.WriteFile(filepath.Join(dir, "vps"), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestLoginAfterAnEditOfTheProfile: the profile has changed since it was deployed. portknock
// logs in with round 0 if the server has the deployed guard, and with round 1 if the server
// has the guard of the profile. The next login works too.
func TestLoginAfterAnEditOfTheProfile(t *testing.T) {
	t.Parallel()
	windows, schedule := rotating(t, periodWithNowAt(t, middle), time.Minute)
	key := "KeyFile " + lab.File(t, "other", otherKey)
	otherWindows := append([]string{key}, windows[1:]...) // the KeyFile comes first in windows
	tokenSettings, _ := tokens(t, periodWithNowAt(t, middle), time.Minute)
	for _, tt := range []struct {
		name              string
		deployed, profile []string
		fingerprint       string // fingerprint of the deployed key
	}{
		{"another sequence", []string{threeKnocks}, []string{otherKnocks}, ""},
		{"static to rotating", []string{threeKnocks}, windows, ""},
		{"rotating to static", otherWindows, []string{threeKnocks}, otherFingerprint},
		{"another key", otherWindows, windows, otherFingerprint},
		{"rotating to token", windows, tokenSettings, schedule.Key.Fingerprint()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nftables, lab.IPv4, tt.profile...)
			r.writeDeployed(t, tt.fingerprint, tt.deployed...)
			for round, server := range [][]string{tt.deployed, tt.profile} {
				rules := emitRules(t, r.server, r.firewall, vpsProfile(t, server...))
				runHeaderLine(t, r.server, rules, "load")
				r.login(t)
				fewest := 0
				for range 5 { // a busy machine can delay the answer, so that one more round leaves
					runHeaderLine(t, r.server, rules, "unload") // ends the opening
					runHeaderLine(t, r.server, rules, "load")
					if fewest = r.roundsUntilOpen(t); fewest <= round+1 {
						break
					}
				}
				if fewest != round+1 {
					t.Errorf("the server has the guard of %v: it opens after %d rounds of knocks, want %d", server, fewest, round+1)
				}
				runHeaderLine(t, r.server, rules, "unload")
			}
		})
	}
}

// roundsUntilOpen returns how many rounds of knocks leave until the port is open. It checks
// that portknock warns once that the profile has changed.
func (r *rig) roundsUntilOpen(t testing.TB) int {
	t.Helper()
	_, stderr, code := portknock(r.client, "knock", "--wait", "-vv", "-c", r.profile, "vps")
	const warning = "vps: the profile has changed since it was deployed at 2026-11-20T23:30:00Z; trying both; run: portknock deploy vps\n"
	if code != 0 || strings.Count(stderr, warning) != 1 {
		t.Errorf("exit code %d, stderr\n%s", code, stderr)
	}
	return strings.Count(stderr, r.addr().String()+": round ")
}

// TestKnockAfterAnEditOfTheProfile: portknock knock sends the deployed knocks and those of
// the profile, because it does not know which of them the server accepts.
func TestKnockAfterAnEditOfTheProfile(t *testing.T) {
	t.Parallel()
	r := newRig(t, nftables, lab.IPv4, otherKnocks)
	r.writeDeployed(t, "", threeKnocks)
	for _, server := range []string{threeKnocks, otherKnocks} {
		r.load(t, []string{server})
		r.client.Run(t, "portknock", "knock", "-c", r.profile, "vps")
		r.expect(t, r.client, lab.Open)
		r.runHeaderLine(t, "unload")
	}
}

// TestLoginAfterAChangeBetweenStaticAndFwknop: the SPA packet goes to a TCP listener, which
// only one of the two guards has. A refused packet does not end the login.
func TestLoginAfterAChangeBetweenStaticAndFwknop(t *testing.T) {
	t.Parallel()
	fwknop := fwknopSettings(t, "SPAProtocol tcp")
	for name, deployed := range map[string][]string{"from fwknop": fwknop, "to fwknop": {threeKnocks}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := fwknop
			if name == "from fwknop" {
				settings = []string{threeKnocks}
			}
			r := newRig(t, nftables, lab.IPv4, threeKnocks) // the server has the static guard
			r.runHeaderLine(t, "load")
			r.profile = r.vpsProfile(t, settings...)
			r.config = r.sshConfig(t, r.profile)
			r.writeDeployed(t, "", deployed...)
			r.login(t)
			_, stderr, code := portknock(r.client, "knock", "-v", "-c", r.profile, "vps")
			if code != 0 || !strings.Contains(stderr, "cannot send the knocks to 192.0.2.1: knock 1 of 1: connect: connection refused; trying the others") {
				t.Errorf("exit code %d, stderr\n%s", code, stderr)
			}
		})
	}
}

// TestLoginAfterARotation: after portknock profile rotate, a login works with a server that still
// has the old rules, and with one that has the new ones.
func TestLoginAfterARotation(t *testing.T) {
	t.Parallel()
	windows, schedule := rotating(t, periodWithNowAt(t, middle), time.Minute)
	for name, tt := range map[string]struct {
		settings    []string
		fingerprint string
	}{
		"a sequence": {[]string{threeKnocks}, ""},
		"a key":      {windows, schedule.Key.Fingerprint()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newGuardedRig(t, nftables, lab.IPv4, tt.settings...)
			r.writeDeployed(t, tt.fingerprint, tt.settings...)
			before, err := os.ReadFile(r.profile)
			if err != nil {
				t.Fatal(err)
			}
			out := r.client.Run(t, "portknock", "profile", "rotate", "-c", r.profile, "vps")
			if after, err := os.ReadFile(r.profile); err != nil || string(after) == string(before) ||
				!strings.HasSuffix(out, "\nnext      portknock -c "+r.profile+" deploy vps\n") {
				t.Fatalf("the profile is %s, error %v, output\n%s", after, err, out)
			}
			r.login(t)
			r.runHeaderLine(t, "unload")
			r.emitRules(t)
			r.runHeaderLine(t, "load")
			r.login(t)
		})
	}
}

// TestLoginAfterAChangeOfScheme: the scheme of a deployed profile changes from static to token and
// back. A login works before each deploy and after it.
func TestLoginAfterAChangeOfScheme(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks, "OpenFor 2")
	login := func() {
		t.Helper()
		r.awaitPort(t, time.Minute, r.client, lab.GuardedPort, lab.Dropped) // the opening of the last login is over
		r.login(t)
	}
	r.deploy(t, 0, []string{"proved    a new login"})
	for _, change := range []struct {
		scheme string
		flags  []string // of deploy
	}{{"token", []string{"--horizon", "1d"}}, {"static", nil}} {
		scheme := change.scheme
		out := r.client.Run(t, "portknock", "profile", "rotate", "--scheme", scheme, "-c", r.profile, "vps")
		if !strings.Contains(out, " to "+scheme+" in "+r.profile+"\n") || !strings.HasSuffix(out, "\nnext      portknock -c "+r.profile+" deploy vps\n") {
			t.Errorf("profile rotate prints\n%s", out)
		}
		login()
		r.deploy(t, 0, []string{"proved    a new login"}, change.flags...)
		login()
		if out := r.client.Run(t, "portknock", "profile", "list", "-c", r.profile); !strings.Contains(out, scheme) {
			t.Errorf("want scheme %s:\n%s", scheme, out)
		}
	}
}

// TestProfileChangesOnAFullDisk: if the disk is full, the profile file and its folder stay as they
// were, also if the key could still be written.
func TestProfileChangesOnAFullDisk(t *testing.T) {
	t.Parallel()
	client := lab.NewHost(t, "client")
	for _, free := range []string{"0", "1"} { // pages
		dir := t.TempDir()
		out, err := client.Try("sh", "-c", `mount -t tmpfs -o size=64k none "$1" && cd "$1" && umask 77 || exit
(echo Host vps; echo Sequence 7001 8003 9005; yes '# text' | head -c 10000) >config
touch .lock
cp config ../before
dd if=/dev/zero of=fill bs=4k 2>&1
truncate -s "-$((4096 * $2))" fill
portknock profile add -c config new --host 192.0.2.1 --scheme token && echo added
EDITOR='echo >>' portknock profile edit -c config && echo edited
cmp config ../before && ls -A`, "sh", dir, free)
		if strings.Count(out, "portknock: cannot ") != 2 || strings.Contains(out, "ed\n") || !strings.HasSuffix(out, "\n.lock\nconfig\nfill\n") {
			t.Errorf("%s free pages: %v\n%s", free, err, out)
		}
		t.Log(out)
	}
}
