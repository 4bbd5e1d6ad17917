package profile

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portknock/portknock/knock"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte(staticFile), "vps")
	f.Add([]byte("\ufeffHost \"a\" b*\tc?\r\n\tSequence = 7000,8000:udp # x\r\n"), "bx")
	f.Add([]byte("Scheme static\nHost * !a\nHostName %h.example\n"), "a")
	f.Add([]byte("Host a 192.0.2.1\nHostName ::1\nBindInterface \"a #b\"\nSequence 1\n"), "::1")
	f.Add([]byte(rotatingFile), "vps")
	f.Add([]byte("Host a\nScheme md5-hourly\nKeyCommand pass \"my key\" \"a#b\"\nHost *\nKeyFile /k\nKnocks 3\nPortRange 10000-10999\n"), "a")
	f.Add([]byte("Host a\nScheme rotating\nKeyFile /k\nValidUntil 1970-01-01T00:00:00.0-23:59\n"), "a")
	f.Add([]byte("Host a\nScheme token\nTokenPort 443\nTokensPerWindow 64\nOpenPorts 1-442/udp\nHost *\nKeyFile /k\nSkew 0\nPeriod 1\n"), "a")
	f.Add([]byte("Host a\nScheme rotating\nKeyFile \"/a\tb\"\n"), "a")
	f.Add([]byte("Match all\nInclude /etc/passwd\n"), "a")
	f.Fuzz(func(t *testing.T, data []byte, host string) {
		file, err := Parse("file", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "file:") {
				t.Fatalf("the error does not start with the file's name: %v", err)
			}
			return
		}
		file.Entries()
		p, err := file.Lookup(host)
		if err != nil {
			return
		}
		var s knock.Schedule
		switch { // Server would read the files and run the commands of the fuzzer's data
		case p.Scheme == "token":
			s = knock.Token{Key: knock.NewKey(), Port: p.TokenPort, Period: p.Period, Tokens: p.TokensPerWindow}
		case p.Knocks > 0:
			s = knock.Rotating{Key: knock.NewKey(), Ports: p.PortRange, Knocks: p.Knocks, Period: p.Period}
		default:
			server, err := p.Server(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s = server.Schedule
		}
		if seqs, _, err := s.At(time.Now()); err != nil || len(seqs) == 0 || len(seqs[0]) == 0 {
			t.Fatalf("got %v, %v; want a sequence with a knock", seqs, err)
		}
		var written bytes.Buffer
		p.WriteTo(&written)
		again, err := Parse("again", written.Bytes())
		if err != nil {
			t.Fatalf("cannot parse what WriteTo wrote: %v\n%s", err, &written)
		}
		q, err := again.Lookup(p.Name)
		if err != nil || !reflect.DeepEqual(p, q) {
			t.Fatalf("WriteTo wrote another profile: %v\n%s", err, &written)
		}
	})
}

// FuzzParseSetting: Lookup does not change a setting that ParseSetting returned.
func FuzzParseSetting(f *testing.F) {
	for _, s := range []string{"Port=2222", `AllowIPCommand "a b" c#`, "OpenPorts = 22 60000-61000/udp", `SPAUser="a b"`, "HostName %h.x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, err := ParseSetting("-o", s)
		if err != nil {
			return
		}
		if again, err := first.checkAgain(); err != nil || again != first {
			t.Fatalf("%q: ParseSetting returned %+v, but checkAgain returned %+v, %v", s, first, again, err)
		}
	})
}

// FuzzEdit: an edit keeps all text that it is not about, and leaves a file that can be read. No
// other profile changes. Remove takes away what Insert has added.
func FuzzEdit(f *testing.F) {
	f.Add([]byte(staticFile), "vps")
	f.Add([]byte("\ufeff# x\r\nHost \"a\" b*\tc # y\r\n\tSequence = 7000,8000:udp # x\r\n\r\n# z\nHost * !a\nPort 22"), "a")
	f.Add([]byte("# all\nHost a 192.0.2.1\n  HostName ::1\n  # z\n\nHost b a\nSequence=\"1 5\"\n"), "a")
	f.Add([]byte("Port 22\nHost *\nPort 23\n"), "*")
	f.Add([]byte("Host a\nScheme rotating\nKeyFile /a\nHost a b\nHost c\nSequence 1\n"), "A")
	f.Add([]byte("Host a\r\n\tScheme fwknop\r\n\tHMACKeyFile /m # x\r\n\tKeyFile /k\r\n\tRepeat 2\r\nHost *\nScheme token\nKeyCommand k"), "a")
	f.Add([]byte("Host a\nKeyFile /k\nHost a\nScheme rotating\n\nHost b\nSequence 1 5\n OpenPorts 2-3"), "b")
	f.Fuzz(func(t *testing.T, data []byte, host string) {
		old, err := Parse("file", data)
		if err != nil {
			return
		}
		if text, err := Remove("file", data, host); err == nil {
			gone := old.namesOf(host)
			checkOthers(t, old, text, func(name string) bool { return slices.Contains(gone, name) })
			rest := lines(data)
			for _, line := range lines(text) { // each line was there before, or is a Host line with fewer names
				i := slices.IndexFunc(rest, func(l string) bool { return l == line || len(l) > len(line) && isSubsequence(line, l) })
				if i < 0 {
					t.Fatalf("%q is a new line\n%q\n%q", line, data, text)
				}
				rest = rest[i+1:]
			}
		}
		if p, err := old.Lookup(host); err == nil {
			for _, settings := range [][]Setting{
				{{Keyword: "Sequence", Value: "50001/udp 40002/tcp"}},
				{{Keyword: "Scheme", Value: "static"}, {Keyword: "Sequence", Value: "50001/udp 40002/tcp"}},
				{{Keyword: "Scheme", Value: "token"}, {Keyword: "KeyFile", Value: "/drawn"}},
				{{Keyword: "Scheme", Value: "fwknop"}, {Keyword: "KeyFile", Value: "/drawn"}, {Keyword: "HMACKeyFile", Value: "/the hmac"}},
			} {
				checkChange(t, old, data, p, settings)
			}
		}
		if text, err := Insert("file", data, []byte("Host new.example\n    Sequence 50001 40002\n")); err == nil {
			text, err = Remove("file", text, "new.example")
			if notBlank := func(b []byte) []string {
				return slices.DeleteFunc(lines(b), func(l string) bool { return strings.TrimSpace(l) == "" })
			}; err != nil || !slices.Equal(notBlank(text), notBlank(data)) {
				t.Fatalf("got %q, %v\nwant %q", text, err, data)
			}
		}
	})
}

// checkChange checks a change of settings of the profile p. It does not count as a failure if
// Change returns an error, but the error must name a line of the old text.
func checkChange(t *testing.T, old *File, data []byte, p *Profile, changed settings) {
	text, err := Change("file", data, p.Name, changed)
	if err != nil {
		var line int
		if _, scanErr := fmt.Sscanf(err.Error(), "file:%d: ", &line); line > len(lines(data)) || scanErr != nil && !strings.HasPrefix(err.Error(), "file: no block for ") {
			t.Fatalf("%v\n%q", err, data)
		}
		return
	}
	file := checkOthers(t, old, text, func(name string) bool {
		q, err := old.Lookup(name)
		return err == nil && q.Name == p.Name
	})
	q, err := file.Lookup(p.Name)
	if err != nil {
		t.Fatalf("%v\n%q", err, text)
	}
	for _, c := range changed {
		if k := keywordNamed(c.Keyword); k.get(q) != c.Value {
			t.Fatalf("%s is %q, want %q\n%q", c.Keyword, k.get(q), c.Value, text)
		}
	}
	// All other lines stay, in their order.
	rest := lines(data)
	for _, line := range lines(text) {
		if i := slices.Index(rest, line); i >= 0 {
			rest = rest[i+1:]
		} else if line != "" && !slices.ContainsFunc(changed, func(c Setting) bool { return strings.Contains(line, c.written()) }) {
			t.Fatalf("%q is a new line\n%q\n%q", line, data, text)
		}
	}
	if gone := len(lines(data)) - len(lines(text)); gone > len(p.Secrets()) {
		t.Fatalf("%d lines are gone\n%q\n%q", gone, data, text)
	}
}

// lines returns the lines of a text without their ends.
func lines(text []byte) (all []string) {
	for line := range strings.SplitSeq(string(text), "\n") {
		all = append(all, strings.TrimSuffix(line, "\r"))
	}
	return all
}

// isSubsequence reports whether all bytes of a are in b, in the same order.
func isSubsequence(a, b string) bool {
	for i := range len(b) {
		if a != "" && a[0] == b[i] {
			a = a[1:]
		}
	}
	return a == ""
}

// checkOthers checks that a text is a file that has the same profiles as old for all names, except
// those that may change.
func checkOthers(t *testing.T, old *File, text []byte, mayChange func(name string) bool) *File {
	t.Helper()
	file, err := Parse("file", text)
	if err != nil {
		t.Fatalf("%v\n%q", err, text)
	}
	for _, b := range old.blocks {
		for _, name := range b.literals() {
			if mayChange(name) || !gather(old.matching(name, nil)).defineKnocks() {
				continue
			}
			p, err := old.Lookup(name)
			q, err2 := file.Lookup(name)
			if err != nil || err2 != nil || !reflect.DeepEqual(p, q) {
				t.Fatalf("%s: %v became %v\n%q", name, p, q, text)
			}
		}
	}
	return file
}
