package profile

import (
	"strings"
	"testing"
)

// TestInsertKeepsTextAndPrecedesDefaults: Insert does not change a byte of the file's
// text. It puts the new block after this text, but before the defaults.
func TestInsertKeepsTextAndPrecedesDefaults(t *testing.T) {
	const block = "Host h\n    HostName 192.0.2.1\n    Scheme fwknop\n    OpenPorts 22/tcp\n    KeyFile h.key\n    AllowIP 198.51.100.7\n"
	for old, want := range map[string]string{
		"":                                     block,
		"\ufeff":                               "\ufeff" + block,
		"# mine":                               "# mine\n\n" + block,
		"Host a\n" + sequenceLine:              "Host a\n" + sequenceLine + "\n" + block,
		"Host a\n" + sequenceLine + "\n":       "Host a\n" + sequenceLine + "\n" + block,
		"Host a\r\n\tSequence 1 3 5\r\n\r\n":   "Host a\r\n\tSequence 1 3 5\r\n\r\n" + block,
		"Host *\n    Port 22":                  block + "\nHost *\n    Port 22",
		"\ufeffHost *\n    Port 22\n":          "\ufeff" + block + "\nHost *\n    Port 22\n",
		"Host a\n\n# x\n # y\nhost = *  # z\n": "Host a\n\n" + block + "\n# x\n # y\nhost = *  # z\n",
		"\ufeff# x\nHost *\n":                  "\ufeff" + block + "\n# x\nHost *\n",
		"Host *\nHost a\n":                     "Host *\nHost a\n\n" + block,
		"Host * !a\n":                          "Host * !a\n\n" + block,
		// The new block overrides the Scheme, the KeyFile and the AllowIPCommand under Host *,
		// so they do not change the new profile. SPAPort does.
		"Host *\n    Scheme rotating\n    KeyFile k\n    SPAPort 5\n    AllowIPCommand ip\n": "",
		"KnockDelay 1ms\n": "KnockDelay 1ms\n\n" + block,
	} {
		text, err := Insert("config", []byte(old), []byte(block))
		if want == "" {
			if err == nil || err.Error() != "config:4: SPAPort also applies to the new host h; add !h to its Host line" {
				t.Errorf("%q: got %v, want an error about SPAPort", old, err)
			}
			continue
		}
		if err != nil || string(text) != want {
			t.Errorf("%q:\ngot  %q, %v\nwant %q", old, text, err, want)
		}
	}
}

func TestInsertReportsConflicts(t *testing.T) {
	const alsoApplies = " also applies to the new host h; "
	const oneBlock = "Host h\n    HostName 192.0.2.1\n    Scheme fwknop\n    KeyFile h.key\n"
	blocks := oneBlock + "\n" + strings.ReplaceAll(oneBlock, "Host h\n", "Host 203.0.113.7\n")
	for old, want := range map[string]string{
		"Nonsense 1\n": `config:1: unknown keyword "Nonsense"`,
		"Host x H\n":   "config:1: a Host line already names h",
		"Host vps\n    HostName 203.0.113.7\n" + sequenceLine: "config:1: host 203.0.113.7 already has a profile: vps",
		"Host ?\n" + sequenceLine:                             "config:2: Sequence" + alsoApplies + "add !h to its Host line",
		"HostName elsewhere\n":                                "config:1: HostName" + alsoApplies + "move it below a Host line",
		"Host ?\n    KeyCommand pass x\n":                     "config:2: KeyCommand" + alsoApplies + "add !h to its Host line",
		"Host *\n    HMACKeyFile k\n":                         "config:2: HMACKeyFile" + alsoApplies + "add !h to its Host line",
		"Host *\n    AddressFamily inet6\n":                   "config:2: AddressFamily: fwknopd opens ports for IPv4 only",
	} {
		if text, err := Insert("config", []byte(old), []byte(blocks)); err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %v\nwant %s\ntext %s", old, err, want, text)
		}
	}
	for blocks, want := range map[string]string{
		oneBlock + oneBlock:                        "config: host h is added more than once",
		"Host *\n    Port 22\n":                    "config: the new block for * must name exactly one host",
		"Host a b\n" + sequenceLine:                "config: the new block for a must name exactly one host",
		"Port 22\n" + oneBlock:                     "config:1: a setting precedes the first Host line",
		"Host a\n    Sequence 22\n" + sequenceLine: "config:3: Sequence is set twice; line 2 sets it already",
	} {
		if _, err := Insert("config", nil, []byte(blocks)); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", blocks, err, want)
		}
	}
}

// TestInsertErrorsHaveLinesOfOldFile: an error in the text after the new block has the
// line number that the user sees in the old file. An error in the new block has a line
// number after those of the old file.
func TestInsertErrorsHaveLinesOfOldFile(t *testing.T) {
	for old, want := range map[string]string{
		"Host *\n    Port 22\n    SPAUser bob\n": "config:3: SPAUser also applies to the new host h; add !h to its Host line",
		"Host *\n    SPAProtocol http\n":         "config:7: SPAPort: random is only possible with SPAProtocol udp",
	} {
		block, err := Block("h", []Setting{mustSetting(t, "KeyFile", "k"), mustSetting(t, "SPAPort", "random"), mustSetting(t, "Scheme", "fwknop")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Insert("config", []byte(old), block); err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %v\nwant %s", old, err, want)
		}
	}
}

func mustSetting(t *testing.T, keyword string, words ...string) Setting {
	t.Helper()
	s, err := newSetting(statement{keyword: keyword, words: words})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestBlockSortsAndChecksSettings: Block writes the settings in the order in which
// [Profile.WriteTo] writes them. Settings that do not fit together are errors.
func TestBlockSortsAndChecksSettings(t *testing.T) {
	got, err := Block("vps", []Setting{
		mustSetting(t, "keyfile", "my key"), mustSetting(t, "Scheme", "rotating"), mustSetting(t, "OpenPorts", "22", "80"), mustSetting(t, "HostName", "h"),
	})
	const want = "Host vps\n    HostName h\n    Scheme rotating\n    OpenPorts 22 80\n    KeyFile \"my key\"\n"
	if err != nil || string(got) != want {
		t.Errorf("got another block or an error:\n%s%v", got, err)
	}
	for _, tt := range []struct {
		host  string
		given []Setting
		want  string
	}{
		{"vps", []Setting{mustSetting(t, "Scheme", "fwknop")}, "Scheme: fwknop needs a KeyFile or a KeyCommand"},
		{"vps", []Setting{mustSetting(t, "Scheme", "fwknop"), mustSetting(t, "Sequence", "7000")}, "Sequence: is only used with Scheme static, not with fwknop"},
		{"*", nil, `"*" is not a host name`},
	} {
		if _, err := Block(tt.host, tt.given); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	for _, text := range []string{`HostName a"b`, "HostName ", "HostName a\x01", "HostName a\xff", "HostName", "HostName a b"} {
		if s, err := ParseSetting("here", text); err == nil {
			t.Errorf("%q: got %+v, want an error", text, s)
		}
	}
}

// TestRemoveKeepsAllOtherText: Remove takes away a block with its comments and one empty line, or
// only names. Nothing else changes.
func TestRemoveKeepsAllOtherText(t *testing.T) {
	const seq = "    Sequence 7001 8003 9005\n"
	for old, want := range map[string]string{
		"Host h\n" + seq:                         "",
		"\ufeffHost h\n" + seq:                   "\ufeff",
		"\ufeff# x\r\nHost h\r\n" + seq + "\r\n": "\ufeff",
		"# mine\n\n# of h\n#too\nHost h\n" + seq + "    # old: 1 2\n\t#\n# next\nHost b\n" + seq: "# mine\n\n# next\nHost b\n" + seq,
		"Host a\n" + seq + "\nHost H\n" + seq:                                                    "Host a\n" + seq,
		"Host a\n" + seq + "\nHost h\n" + seq + "\n\nHost b\n" + seq:                             "Host a\n" + seq + "\n\nHost b\n" + seq,
		"Host a\n  # not of h\nHost h\nPort 22\n\n" + seq + "Host b\n" + seq:                     "Host a\n  # not of h\nHost b\n" + seq,
		"Port 22\n  # of h\n  Host = h # x\n" + seq + "\n    # free\n":                           "Port 22\n    # free\n",
		"Host h !h* !b\n" + seq + "Host *\n" + seq:                                               "Host *\n" + seq,
		// Names on a line. The name of a profile takes along its other names.
		"Host  a  h\t b # h\r\n" + seq:                           "Host  a\t b # h\r\n" + seq,
		"\tHost=\"h\" a*\n" + seq:                                "\tHost=a*\n" + seq,
		"Host h 192.0.2.1 \"b\"  # x\n" + seq:                    "Host \"b\"  # x\n" + seq,
		"Host b h\n" + seq + "    HostName 192.0.2.1\n":          "Host b\n" + seq + "    HostName 192.0.2.1\n",
		"Host h b\n" + seq + "    HostName 192.0.2.1\n":          "",
		"Host h\nPort 22\n\nHost a h\n" + seq + "Host h\n" + seq: "Host a\n" + seq,
	} {
		text, err := Remove("config", []byte(old), "h")
		if err != nil || string(text) != want {
			t.Errorf("%q:\ngot  %q, %v\nwant %q", old, text, err, want)
		}
	}
	for old, want := range map[string]string{
		"Nonsense 1\n":              `config:1: unknown keyword "Nonsense"`,
		"Host *\n" + seq:            "no profile: no Host line in config names h",
		"Host a\n" + "HostName h\n": "no profile: no Host line in config names h",
		"Host h x\nScheme token\nKeyFile /k\nHost h\nPort 22\nHost b\nPort 2\n": "",
		"Host h x\nScheme token\nHost h\nKeyFile /k\nHost x\nKeyFile /k\n":      "",
	} {
		if text, err := Remove("config", []byte(old), "h"); (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%q:\ngot  %q, %v\nwant %s", old, text, err, want)
		}
	}
}
