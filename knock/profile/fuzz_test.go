package profile

import (
	"bytes"
	"reflect"
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
