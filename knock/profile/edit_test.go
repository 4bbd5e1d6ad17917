package profile

import (
	"strings"
	"testing"
)

// TestInsert: what is there stays, byte for byte; imports stand behind it, but
// before the defaults.
func TestInsert(t *testing.T) {
	imports, _, err := ImportFwknop("rc", []byte(rcBase), "")
	if err != nil {
		t.Fatal(err)
	}
	const block = "Host h\n    HostName 192.0.2.1\n    Scheme fwknop\n    OpenPorts 22/tcp\n    KeyFile h.key\n    AllowIP 198.51.100.7\n"
	for old, want := range map[string]string{
		"":                                     block,
		"\ufeff":                               "\ufeff" + block,
		"# mine":                               "# mine\n\n" + block,
		"Host a\n" + knocks:                    "Host a\n" + knocks + "\n" + block,
		"Host a\n" + knocks + "\n":             "Host a\n" + knocks + "\n" + block,
		"Host a\r\n\tSequence 1 3 5\r\n\r\n":   "Host a\r\n\tSequence 1 3 5\r\n\r\n" + block,
		"Host *\n    Port 22":                  block + "\nHost *\n    Port 22",
		"\ufeffHost *\n    Port 22\n":          "\ufeff" + block + "\nHost *\n    Port 22\n",
		"Host a\n\n# x\n # y\nhost = *  # z\n": "Host a\n\n" + block + "\n# x\n # y\nhost = *  # z\n",
		"Host *\nHost a\n":                     "Host *\nHost a\n\n" + block,
		"Host * !a\n":                          "Host * !a\n\n" + block,
		// Defaults that are for other schemes, or that the import outranks.
		"Host *\n    Scheme rotating\n    KeyFile k\n    SPAPort 5\n    AllowIPCommand ip\n": "",
		"KnockDelay 1ms\n": "KnockDelay 1ms\n\n" + block,
	} {
		text, err := Insert("config", []byte(old), imports)
		if want == "" {
			if err == nil || err.Error() != "config:4: SPAPort would count for the imported h too: keep it to the hosts it is for" {
				t.Errorf("%q: %v", old, err)
			}
			continue
		}
		if err != nil || string(text) != want {
			t.Errorf("%q:\ngot  %q, %v\nwant %q", old, text, err, want)
		}
	}
}

func TestInsertRefuses(t *testing.T) {
	imports, _, err := ImportFwknop("rc", []byte(rcBase+strings.Replace(rcBase, "[h]", "[203.0.113.7]", 1)), "")
	if err != nil {
		t.Fatal(err)
	}
	for old, want := range map[string]string{
		"Nonsense 1\n": `config:1: unknown keyword "Nonsense"`,
		"Host x H\n":   "config:1: there is a Host h already",
		"Host vps\n    HostName 203.0.113.7\n" + knocks: "config: there is a profile for 203.0.113.7 already: vps",
		"Host ?\n" + knocks:                             "config: what is there prevents Scheme of the imported h",
		"HostName elsewhere\n":                          "config:1: HostName would count for the imported h too: keep it to the hosts it is for",
		"Host ?\n    KeyCommand pass x\n":               "config: what is there prevents KeyFile of the imported h",
		"Host *\n    HMACKeyFile k\n":                   "config:2: HMACKeyFile would count for the imported h too: keep it to the hosts it is for",
		"Host *\n    AddressFamily inet6\n":             "config:2: AddressFamily: fwknopd opens ports for IPv4 only",
	} {
		if text, err := Insert("config", []byte(old), imports); err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %v\nwant %s\n%s", old, err, want, text)
		}
	}
	twice := append(imports, imports[0])
	if _, err := Insert("config", nil, twice); err == nil {
		t.Error("one profile twice")
	}
}
