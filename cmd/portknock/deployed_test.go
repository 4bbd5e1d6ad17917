package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
)

// The keys of these tests.
var firstKey, secondKey = strings.Repeat("1", 32), strings.Repeat("2", 32)

// keyText returns the text of a portknock key with these 32 bytes.
func keyText(secret string) string { return knock.KeyFrom([]byte(secret)).Reveal() + "\n" }

// writeConfig writes a profile file and its keys into a new folder. It returns the path of
// the profile file. On Windows, other programs take the place of those of Unix.
func writeConfig(t testing.TB, text string, keys map[string]string) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		text = strings.NewReplacer("KeyCommand cat ", "KeyCommand cmd /c type ", "KeyCommand head -n 1 ", "KeyCommand cmd /d /c type ",
			"KeyCommand printf %s ", "KeyCommand cmd /c echo ").Replace(text)
	}
	config := filepath.Join(t.TempDir(), "config")
	for file, text := range keys {
		if err := os.WriteFile(filepath.Join(filepath.Dir(config), file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}

// lookUp returns a profile of a profile file.
func lookUp(t testing.TB, config, name string) *profile.Profile {
	t.Helper()
	file, err := profile.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	p, err := file.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serverOf returns the server's half of a profile.
func serverOf(t testing.TB, p *profile.Profile) profile.Server {
	t.Helper()
	s, err := p.Server(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// haveSameKnocks is sameKnocks, and reads the keys of both profiles.
func haveSameKnocks(t testing.TB, p, q *profile.Profile) bool {
	t.Helper()
	return sameKnocks(p, q, serverOf(t, p), serverOf(t, q))
}

// deploymentOf returns the deployment of a profile as deploy makes it.
func deploymentOf(t testing.TB, p *profile.Profile) *deployment {
	t.Helper()
	s := serverOf(t, p)
	return &deployment{profile: p, Time: time.Date(2026, 11, 20, 23, 30, 0, 5, time.UTC), Format: "nftables", ID: "0123456789abcdef",
		Version: "v1", Server: "root@\x7fvps\u0085 \"ü\" # x", Fingerprint: s.Fingerprint}
}

func mustSave(t testing.TB, config string, d *deployment) {
	t.Helper()
	if err := saveDeployment(config, d); err != nil {
		t.Fatal(err)
	}
}

func mustLoad(t testing.TB, config, name string) *deployment {
	t.Helper()
	d, err := loadDeployment(config, name)
	if err != nil || d == nil {
		t.Fatalf("got the deployment %v, error %v", d, err)
	}
	return d
}

// deployedFiles returns the names of the files in the folder deployed, without the lock.
func deployedFiles(t testing.TB, config string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(config), "deployed"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != ".lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

// TestDeploymentOutlivesItsProfile: for each scheme, a loaded deployment has the knocks and
// all other settings of the saved profile. This holds although the profile file and the
// keys have been removed, and the folder has been moved.
func TestDeploymentOutlivesItsProfile(t *testing.T) {
	for _, settings := range []string{
		"Sequence 7001/udp 8003 9005/udp\nOpenPorts 22 60000-61000/udp\nIgnorePorts none\nHostName a%%b.example\nKnockDelay 3ms",
		"Scheme rotating\nKeyFile key\nPeriod 2h\nValidUntil 2027-11-20T22:00:00Z\nProtocol tcp\nPortRange 30000-39999",
		"Scheme rotating\nKeyFile key\nDeriveHostKey yes\nBindInterface \"eth 0\"",
		"Scheme rotating\nKeyCommand printf %s \"" + strings.TrimSpace(keyText(firstKey)) + "\"\nDeriveHostKey yes",
		"Scheme token\nKeyFile key\nSkew 0\nTokensPerWindow 3",
		"Scheme md5-hourly\nKeyFile short",
		"Scheme fwknop\nKeyFile short\nHMACKeyFile key\nHMACDigest sha512\nSPATimeout 30\nNATAccess 10.0.0.5,22\nAllowIP 192.0.2.1",
		"Scheme fwknop\nKeyFile short\nHMACDigest sha512",
	} {
		config := writeConfig(t, "Host vps.example\n"+settings+"\n", map[string]string{"key": keyText(firstKey), "short": "base64:Zm9v\n"})
		p := lookUp(t, config, "vps.example")
		saved := deploymentOf(t, p)
		server := serverOf(t, p)
		mustSave(t, config, saved)

		moved := filepath.Join(t.TempDir(), "moved")
		if err := os.Rename(filepath.Dir(config), moved); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"config", "key", "short"} {
			if err := os.Remove(filepath.Join(moved, file)); err != nil {
				t.Fatal(err)
			}
		}
		d := mustLoad(t, filepath.Join(moved, "config"), "vps.example")
		got, err := d.profile.Server(t.Context())
		if err != nil {
			t.Fatalf("%s\n%v", settings, err)
		}
		if !sameKnocks(p, d.profile, server, got) {
			t.Errorf("%s\nthe loaded deployment has other knocks", settings)
		}
		q := *d.profile
		q.KeyFile, q.SPA.HMACKeyFile, q.DeriveHostKey = p.KeyFile, p.SPA.HMACKeyFile, p.DeriveHostKey
		if p.SPA.HMACKeyFile == "" {
			q.SPA.HMACDigest = p.SPA.HMACDigest // has no effect
		}
		if !reflect.DeepEqual(&q, p) {
			t.Errorf("%s\ngot  %+v\nwant %+v", settings, &q, p)
		}
		want := &deployment{profile: d.profile, config: d.config, Time: time.Date(2026, 11, 20, 23, 30, 0, 0, time.UTC), Format: "nftables",
			ID: "0123456789abcdef", Version: "v1", Server: "root@vps \"ü\" # x", Fingerprint: server.Fingerprint}
		if !reflect.DeepEqual(d, want) {
			t.Errorf("%s\ngot  %+v\nwant %+v", settings, d, want)
		}
		for _, name := range deployedFiles(t, d.config) {
			text, err := os.ReadFile(filepath.Join(moved, "deployed", name))
			if err != nil {
				t.Fatal(err)
			}
			master := strings.Contains(settings, "DeriveHostKey")
			if strings.HasSuffix(name, keySuffix) && (len(p.KeyCommand) > 0 || master && bytes.Contains(text, []byte(keyText(firstKey)))) {
				t.Errorf("%s\nthe file %s contains a key that must not be copied", settings, name)
			}
		}
	}
}

// TestSaveDeploymentReplacesTheOldOne: after each save, the folder has one deployment and
// the keys that it uses. All of them have mode 0600.
func TestSaveDeploymentReplacesTheOldOne(t *testing.T) {
	config := writeConfig(t, "Host vps\nScheme rotating\nKeyFile key\n", map[string]string{"key": keyText(firstKey)})
	path := filepath.Join(filepath.Dir(config), "deployed", "vps")
	if d, err := loadDeployment(config, "vps"); d != nil || err != nil {
		t.Errorf("without a file, got %v, error %v", d, err)
	}
	if err := removeDeployment(config, "vps"); err != nil {
		t.Errorf("without a folder: %v", err)
	}
	for _, key := range []string{firstKey, secondKey, secondKey} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(config), "key"), []byte(keyText(key)), 0o600); err != nil {
			t.Fatal(err)
		}
		p := lookUp(t, config, "vps")
		mustSave(t, config, deploymentOf(t, p))
		// These files are of killed processes, and of another profile.
		for _, name := range []string{".portknock-1", "vps.0123456789abcdef.key", "vps.0123456789abcdef"} {
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		mustSave(t, config, deploymentOf(t, p))
		d := mustLoad(t, config, "vps")
		if !haveSameKnocks(t, p, d.profile) {
			t.Error("the deployment has other knocks")
		}
		want := []string{"vps", "vps.0123456789abcdef", filepath.Base(d.profile.KeyFile)}
		slices.Sort(want)
		if got := deployedFiles(t, config); !slices.Equal(got, want) {
			t.Errorf("got the files %v, want %v", got, want)
		}
		for _, file := range []string{path, d.profile.KeyFile, filepath.Join(filepath.Dir(path), ".lock"), filepath.Dir(path)} {
			info, err := os.Stat(file)
			if want := map[bool]fs.FileMode{false: 0o600, true: 0o700}[file == filepath.Dir(path)]; err != nil || info.Mode().Perm() != want && runtime.GOOS != "windows" {
				t.Errorf("%s: mode %v, error %v; want %v", file, info.Mode(), err, want)
			}
		}
	}
	if err := removeDeployment(config, "vps"); err != nil {
		t.Fatal(err)
	}
	if got := deployedFiles(t, config); !slices.Equal(got, []string{"vps.0123456789abcdef"}) {
		t.Errorf("after the removal, got the files %v", got)
	}
}

// TestListDeployments: the list has each deployment once, although one file is damaged, and
// another is a copy that the user has made.
func TestListDeployments(t *testing.T) {
	config := writeConfig(t, "Host one two broken\n"+static, nil)
	if all, err := listDeployments(config); len(all) != 0 || err != nil {
		t.Errorf("without a folder, got %v, error %v", all, err)
	}
	for _, name := range []string{"one", "two", "broken"} {
		mustSave(t, config, deploymentOf(t, lookUp(t, config, name)))
	}
	text, err := os.ReadFile(deployedFile(config, "one"))
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"copy": string(text), "broken": "Host broken\n" + static} {
		if err := os.WriteFile(deployedFile(config, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := listDeployments(config)
	if err == nil || !strings.Contains(err.Error(), "broken:1: not the first line of a deployment") {
		t.Errorf("got the error %v, want one about the damaged file", err)
	}
	var names []string
	for _, d := range all {
		names = append(names, d.profile.Name)
	}
	if !slices.Equal(names, []string{"one", "two"}) {
		t.Errorf("got the deployments of %v, want those of one and two", names)
	}
}

// TestSaveDeploymentWithoutTheDeployedKey: if another key has replaced that of the rules, the
// old deployment stays as it was.
func TestSaveDeploymentWithoutTheDeployedKey(t *testing.T) {
	config := writeConfig(t, "Host vps\nScheme rotating\nKeyFile key\n", map[string]string{"key": keyText(firstKey)})
	p := lookUp(t, config, "vps")
	d := deploymentOf(t, p)
	mustSave(t, config, d)
	before := deployedFiles(t, config)
	for _, change := range []func() error{
		func() error { return os.WriteFile(p.KeyFile, []byte(keyText(secondKey)), 0o600) },
		func() error { return os.Remove(p.KeyFile) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if err := saveDeployment(config, d); err == nil || !strings.HasPrefix(err.Error(), "vps: ") {
			t.Errorf("got the error %v, want one about the key", err)
		}
		if s, err := mustLoad(t, config, "vps").profile.Server(t.Context()); err != nil || s.Fingerprint != d.Fingerprint {
			t.Errorf("the deployment has the key %s, error %v; want %s", s.Fingerprint, err, d.Fingerprint)
		}
		if after := deployedFiles(t, config); !slices.Equal(after, before) {
			t.Errorf("the files were %v and are now %v", before, after)
		}
	}
}

// TestStandardInputHasNoDeployments: a profile file that is not a regular file has no
// deployments.
func TestStandardInputHasNoDeployments(t *testing.T) {
	t.Chdir(t.TempDir())
	p := lookUp(t, writeConfig(t, "Host vps\nSequence 7001/udp 8003\n", nil), "vps")
	if err := os.Symlink(os.DevNull, "device"); err != nil {
		t.Skip(err) // symbolic links need a privilege on Windows
	}
	for _, config := range []string{"-", "device"} {
		d, err := loadDeployment(config, "vps")
		if err := cmp.Or(err, saveDeployment(config, deploymentOf(t, p)), removeDeployment(config, "vps")); d != nil || err != nil {
			t.Errorf("%s: got the deployment %v, error %v", config, d, err)
		}
	}
	if entries, err := os.ReadDir("."); len(entries) != 1 || err != nil {
		t.Errorf("got the files %v, error %v", entries, err)
	}
}

// TestDeployedFileNames: different names have different files, without characters that a
// file system does not accept, and without the form of a key's name.
func TestDeployedFileNames(t *testing.T) {
	long := strings.Repeat("ü", 120)
	files := map[string]string{}
	for name, want := range map[string]string{
		"vps":                 "vps",
		"vps-1.example_x":     "vps-1.example_x",
		"2001:db8::1":         "2001%3adb8%3a%3a1",
		"fe80::1%eth0":        "fe80%3a%3a1%25eth0",
		"2001%3adb8%3a%3a1":   "2001%253adb8%253a%253a1",
		".":                   "%2e",
		"..":                  "%2e%2e",
		".lock":               "%2elock",
		"vps.":                "vps%2e",
		"a/../b":              "a%2f..%2fb",
		`a,~^@+]`:             "a%2c%7e%5e%40%2b%5d",
		"vps.0011223344.key":  "vps.0011223344%2ekey",
		"vps.key.example.key": "vps.key.example%2ekey",
		"bücher":              "b%c3%bccher",
		long:                  "",
		long + "x":            "",
	} {
		file := deployedFile(filepath.Join("dir", "config"), name)
		if other, ok := files[file]; ok {
			t.Errorf("%s and %s have the file %s", name, other, file)
		}
		files[file] = name
		if filepath.Dir(file) != filepath.Join("dir", "deployed") || want != "" && filepath.Base(file) != want {
			t.Errorf("%s has the file %s, want %s", name, file, want)
		}
		if base := filepath.Base(file); len(base) > 230 || !regexp.MustCompile(`^[a-z0-9_%-][a-z0-9_.%~-]*$`).MatchString(base) {
			t.Errorf("%s has the file %s", name, file)
		}
	}
	for _, name := range []string{"2001:db8::1", "fe80::1%eth0", "a/../b", "bücher", strings.Repeat("a", 250)} {
		config := writeConfig(t, "Host "+name+"\nScheme rotating\nKeyFile key\n", map[string]string{"key": keyText(firstKey)})
		p := lookUp(t, config, name)
		mustSave(t, config, deploymentOf(t, p))
		if !haveSameKnocks(t, p, mustLoad(t, config, name).profile) {
			t.Errorf("%s: the deployment has other knocks", name)
		}
	}
}

// knocksTable has two values of each keyword, and whether profiles that differ in the
// keyword have the same knocks.
var knocksTable = []struct {
	keyword, base, one, other string
	same                      bool
}{
	{"HostName", static, "a", "b", true},
	{"Port", static + "OpenPorts 22\n", "1", "2", true},
	{"AddressFamily", static, "inet", "inet6", true},
	{"BindAddress", static, "192.0.2.1", "192.0.2.2", true},
	{"BindInterface", static, "eth0", "eth1", true},
	{"Scheme", "KeyFile key\n", "rotating", "token", false},
	{"Sequence", "", "7001/udp 8003", "7001/udp 8004", false},
	{"KnockDelay", static, "1ms", "2ms", true},
	{"OpenPorts", static, "22", "23", true},
	{"OpenPorts", fwknop, "22", "23", false},
	{"OpenFor", static, "30", "31", true},
	{"KnockTimeout", static, "5", "6", true},
	{"IgnorePorts", static, "none", "80", true},
	{"ConnectTimeout", static, "5", "6", true},
	{"KeyFile", "Scheme rotating\n", "key", "other", false},
	{"KeyFile", "Scheme rotating\n", "key", "same", true},
	{"KeyFile", "Scheme md5-hourly\n", "short", "shorter", false},
	{"KeyFile", "Scheme fwknop\n", "short", "shorter", false},
	{"KeyCommand", "Scheme rotating\n", "cat KEY", "cat OTHER", false},
	{"KeyCommand", "Scheme rotating\n", "cat KEY", "head -n 1 KEY", true},
	{"DeriveHostKey", rotates, "yes", "no", false},
	{"Period", rotates, "1h", "2h", false},
	{"Skew", rotates, "1m", "2m", false},
	{"ValidUntil", rotates, "2027-11-20", "2027-11-21", true},
	{"Repeat", static, "1", "2", true},
	{"PortRange", rotates, "20000-29999", "20000-29998", false},
	{"Knocks", rotates, "5", "6", false},
	{"Protocol", rotates, "udp", "tcp", false},
	{"TokenPort", "Scheme token\nKeyFile key\n", "62202", "62203", false},
	{"TokensPerWindow", "Scheme token\nKeyFile key\n", "8", "9", false},
	{"SPAPort", fwknop, "62201", "62202", false},
	{"SPAProtocol", fwknop, "udp", "tcp", false},
	{"AllowIP", fwknop, "source", "192.0.2.1", false}, // the server can require an AllowIP
	{"AllowIP", fwknop, "192.0.2.1", "192.0.2.2", true},
	{"AllowIPCommand", fwknop, "echo 192.0.2.1", "echo 192.0.2.2", true},
	{"SPATimeout", fwknop, "1", "2", true},     // fwknopd accepts each
	{"SPADigest", fwknop, "sha1", "md5", true}, // fwknopd accepts each
	{"SPAMode", fwknop, "cbc", "legacy", false},
	{"SPAUser", fwknop, "a", "b", true}, // the emitted configuration accepts each
	{"TimeOffset", fwknop, "0", "1", true},
	{"NATAccess", fwknop, "10.0.0.5,22", "10.0.0.6,22", false},
	{"NATLocal", fwknop + "NATAccess 10.0.0.5,22\n", "yes", "no", false},
	{"HMACKeyFile", fwknop, "key", "other", false},
	{"HMACDigest", fwknop + "HMACKeyFile key\n", "sha256", "sha512", false},
	{"HMACDigest", fwknop, "sha256", "sha512", true}, // without an HMACKeyFile
}

const (
	static  = "Sequence 7001/udp 8003\n"
	rotates = "Scheme rotating\nKeyFile key\n"
	fwknop  = "Scheme fwknop\nKeyFile short\n"
)

func TestSameKnocksForEachKeyword(t *testing.T) {
	for _, tt := range knocksTable {
		t.Run(fmt.Sprintf("%s %s", tt.keyword, tt.other), func(t *testing.T) {
			var ps []*profile.Profile
			for _, value := range []string{tt.one, tt.other} {
				dir := t.TempDir() // for the keys of commands
				for name, key := range map[string]string{"key": firstKey, "other": secondKey} {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(keyText(key)), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				value = strings.NewReplacer("KEY", filepath.Join(dir, "key"), "OTHER", filepath.Join(dir, "other")).Replace(value)
				config := writeConfig(t, "Host vps\n"+tt.base+tt.keyword+" "+value+"\n", map[string]string{"key": keyText(firstKey),
					"same": keyText(firstKey) + "\n", "other": keyText(secondKey), "short": "foo", "shorter": "fo"})
				ps = append(ps, lookUp(t, config, "vps"))
			}
			for _, pair := range [][2]int{{0, 1}, {1, 0}, {0, 0}} {
				want := tt.same || pair == [2]int{}
				if got := haveSameKnocks(t, ps[pair[0]], ps[pair[1]]); got != want {
					t.Errorf("profiles %v: got %v, want %v", pair, got, want)
				}
			}
		})
	}
}

// TestKnocksTableHasEachKeyword: each field of a profile that a keyword sets is in the table.
func TestKnocksTableHasEachKeyword(t *testing.T) {
	listed := map[string]bool{"Name": true, "Runner": true, "SPA": true} // no keyword sets these
	for _, row := range knocksTable {
		if _, err := profile.ParseSetting("-o", row.keyword+"=x"); err != nil && strings.Contains(err.Error(), "unknown keyword") {
			t.Error(err)
		}
		listed[row.keyword] = true
	}
	for field := range reflect.TypeFor[profile.Profile]().Fields() {
		if !listed[field.Name] {
			t.Errorf("knocksTable does not have the keyword %s", field.Name)
		}
	}
	for field := range reflect.TypeFor[profile.SPA]().Fields() {
		if !listed[field.Name] && !listed["SPA"+field.Name] {
			t.Errorf("knocksTable does not have the keyword %s", field.Name)
		}
	}
	if !listed["Protocol"] { // the field PortRange has two keywords
		t.Error("knocksTable does not have the keyword Protocol")
	}
}

// TestAlternatingPickers: the rounds of two Pickers alternate, and each has its own count.
func TestAlternatingPickers(t *testing.T) {
	one, other := knock.Sequence{{Port: 1}, {Port: 2}}, knock.Sequence{{Port: 3}, {Port: 4}}
	a := alternating{knock.Client{Schedule: one}, knock.Client{Schedule: other}}
	for n, want := range []knock.Sequence{one, other, one, other, one} {
		got, err := a.Round(time.Now(), netip.Addr{}, netip.Addr{}, n)
		pause := []time.Duration{0, 10 * time.Millisecond, 20 * time.Millisecond}[n/2]
		if err != nil || !reflect.DeepEqual(got, knock.Round{Send: want, Pause: pause}) {
			t.Errorf("round %d: got %v, error %v; want %v with a pause of %v", n, got, err, want, pause)
		}
	}
}

// TestFamilyOfTwoProfiles: if the server may have a guard that opens ports for IPv4 only,
// portknock connects by IPv4, unless the user asks for IPv6.
func TestFamilyOfTwoProfiles(t *testing.T) {
	config := writeConfig(t, "Host spa\n"+fwknop+"Host static six\n"+static+"Host six\nAddressFamily inet6\n", map[string]string{"short": "foo"})
	spa, static, six := lookUp(t, config, "spa"), lookUp(t, config, "static"), lookUp(t, config, "six")
	for _, tt := range []struct {
		p, deployed *profile.Profile
		want        string
	}{{static, nil, ""}, {static, spa, "ip4"}, {spa, static, "ip4"}, {six, spa, "ip6"}} {
		d, err := dialer(t.Context(), tt.p, tt.deployed, &logger{})
		if err != nil || d.Family != tt.want {
			t.Errorf("got the family %q, error %v; want %q", d.Family, err, tt.want)
		}
	}
}

// TestKnocksThatCannotBeSentDoNotHideTheOthers: a round of alternating knocks may fail. Two
// rounds in a row may not, and a missing route is an error at once.
func TestKnocksThatCannotBeSentDoNotHideTheOthers(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	k := &knocker{failed: map[netip.Addr]int{}}
	noRoute := error(syscall.ENETUNREACH)
	if runtime.GOOS == "windows" {
		noRoute = syscall.Errno(10051) // WSAENETUNREACH
	}
	for i, tt := range []struct {
		to    netip.Addr
		round int
		err   error
		want  bool
	}{
		{a, 0, noRoute, false},
		{a, 0, syscall.ECONNREFUSED, true},
		{b, 1, syscall.ECONNREFUSED, true},
		{a, 2, syscall.ECONNREFUSED, true},
		{a, 3, syscall.ECONNREFUSED, false},
	} {
		if got := k.tolerates(tt.to, tt.round, tt.err); got != tt.want {
			t.Errorf("case %d: got %v, want %v", i, got, tt.want)
		}
	}
	if new(knocker).tolerates(a, 0, syscall.ECONNREFUSED) {
		t.Error("knocks that do not alternate must not fail")
	}
}

// TestOtherKnocks: a deployment whose key another deploy has just replaced is read again. A
// deployed profile that cannot be used is ignored.
func TestOtherKnocks(t *testing.T) {
	const spa = "Scheme fwknop\nKeyFile short\n"
	config := writeConfig(t, "Host rotates\n"+rotates+"Host spa\n"+spa+"Host broken\n"+spa+"SPAMode ecb\nAllowIPCommand no-such-program\n",
		map[string]string{"key": keyText(firstKey), "short": "foo"})
	a := &app{log: logger{quiet: true}}
	p := lookUp(t, config, "rotates")
	mustSave(t, config, deploymentOf(t, p))
	stale := mustLoad(t, config, "rotates")
	mustSave(t, config, deploymentOf(t, p))
	if got, err := otherKnocks(t.Context(), a, p, stale); got != nil || err != nil {
		t.Errorf("with the key of the new deployment: got %v, error %v", got, err)
	}
	changed := *p
	changed.Period *= 2
	mustSave(t, config, deploymentOf(t, p))
	if got, err := otherKnocks(t.Context(), a, &changed, stale); got == nil || got.Period != p.Period || err != nil {
		t.Errorf("after a change: got %v, error %v", got, err)
	}
	broken := &deployment{profile: lookUp(t, config, "broken"), config: config}
	if got, err := otherKnocks(t.Context(), a, lookUp(t, config, "spa"), broken); got != nil || err != nil {
		t.Errorf("with a command that fails: got %v, error %v", got, err)
	}
}

// TestWarningBeforeDeployedRulesExpire: portknock warns in the second half of the time for
// which deployed rules are valid, at the earliest 30 days before their end.
func TestWarningBeforeDeployedRulesExpire(t *testing.T) {
	const day = 24 * time.Hour
	began := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	defer func() { now = time.Now }()
	for _, tt := range []struct {
		valid, after time.Duration
		want         bool
	}{
		{365 * day, 334 * day, false}, {365 * day, 336 * day, true}, {365 * day, 366 * day, true},
		{30 * day, 14 * day, false}, {30 * day, 16 * day, true},
		{2 * day, 23 * time.Hour, false}, {2 * day, 25 * time.Hour, true},
	} {
		file, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		end := began.Add(tt.valid)
		p := &profile.Profile{Name: "vps", ValidUntil: end}
		now = func() time.Time { return began.Add(tt.after) }
		warnOfExpiry(&app{log: logger{quiet: true, file: file}}, p, &deployment{profile: p, Time: began})
		text, err := os.ReadFile(file.Name())
		if err = cmp.Or(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		warns := strings.HasSuffix(string(text), "at "+utc(end)+"; run: portknock deploy --renew vps\n")
		if warns != tt.want || len(text) > 0 != tt.want {
			t.Errorf("rules that are valid for %v, after %v: got the warning %q", tt.valid, tt.after, text)
		}
	}
}

// saverVariable makes this test program a process that saves deployments until it is killed.
// Its value is the path of the profile file.
const saverVariable = "PORTKNOCK_TEST_SAVER"

// saveForever saves the deployments of the profiles one and two in turn, as deployments
// named vps.
func saveForever(config string) {
	var ds []*deployment
	for _, name := range []string{"one", "two"} {
		file, err := profile.Load(config)
		if err != nil {
			panic(err)
		}
		p, err := file.Lookup(name)
		if err != nil {
			panic(err)
		}
		p.Name = "vps"
		s, err := p.Server(context.Background())
		if err != nil {
			panic(err)
		}
		ds = append(ds, &deployment{profile: p, Server: name, Fingerprint: s.Fingerprint})
	}
	fmt.Println("ready")
	for n := 0; ; n++ {
		if err := saveDeployment(config, ds[n%2]); err != nil {
			panic(err)
		}
	}
}

// TestSaversThatAreKilled: two processes save deployments all the time, and are killed at
// random moments. At any moment, the folder has one of the two deployments with its key.
func TestSaversThatAreKilled(t *testing.T) {
	if os.Getenv(saverVariable) != "" { // such a process would start others without end
		t.Fatal("TestMain does not call saveForever")
	}
	config := writeConfig(t, "Host one\nScheme rotating\nKeyFile 1\nKnocks 4\nHost two\nScheme rotating\nKeyFile 2\nKnocks 5\n",
		map[string]string{"1": keyText(firstKey), "2": keyText(secondKey)})
	first := lookUp(t, config, "one")
	first.Name = "vps"
	mustSave(t, config, deploymentOf(t, first))
	check := func() (whole bool) {
		t.Helper()
		d, err := loadDeployment(config, "vps")
		const sharingViolation = syscall.Errno(32) // Windows does not open a file in the moment in which it is replaced
		if runtime.GOOS == "windows" && errors.Is(err, sharingViolation) {
			return false
		}
		if err != nil || d == nil {
			t.Fatalf("got the deployment %v, error %v", d, err)
		}
		s, err := d.profile.Server(t.Context())
		if errors.Is(err, fs.ErrNotExist) {
			return false
		}
		if want := map[int]string{4: firstKey, 5: secondKey}[d.profile.Knocks]; err != nil ||
			s.Fingerprint != knock.KeyFrom([]byte(want)).Fingerprint() || s.Fingerprint != d.Fingerprint {
			t.Fatalf("%d knocks with the key %s, error %v", d.profile.Knocks, s.Fingerprint, err)
		}
		return true
	}
	for range 25 {
		var savers []*exec.Cmd
		for range 2 {
			c := exec.CommandContext(t.Context(), os.Args[0])
			c.Env = append(os.Environ(), saverVariable+"="+config)
			c.Stderr = os.Stderr
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			savers = append(savers, c)
			if _, err := out.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range savers {
			// A reader that finds no key loads the deployment again.
			for end := time.Now().Add(rand.N(10 * time.Millisecond)); time.Now().Before(end); {
				check()
			}
			if err := c.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = c.Wait()
		}
		if !check() {
			t.Fatal("the deployment has no key")
		}
	}
	mustSave(t, config, deploymentOf(t, first))
	if got := deployedFiles(t, config); len(got) != 2 {
		t.Errorf("got the files %v, want the deployment and its key", got)
	}
}
