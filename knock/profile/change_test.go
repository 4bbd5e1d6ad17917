package profile

import "testing"

// TestChangeReplacesOnlyTheValue: Change keeps the rest of the line and all other lines. A line
// that is not only for the profile is an error.
func TestChangeReplacesOnlyTheValue(t *testing.T) {
	for old, want := range map[string]string{
		"Host h\n\tsequence =  7001  8003 # x\n":                          "Host h\n\tsequence =  1 2 3 # x\n",
		"\ufeffHost h\r\nSequence=\"7001 8003\"\r\n":                      "\ufeffHost h\r\nSequence=1 2 3\r\n",
		"Host h 192.0.2.1 !a\n  Sequence 7001/udp":                        "Host h 192.0.2.1 !a\n  Sequence 1 2 3",
		"Host h b\nHostName x\nSequence 7001\nHost b":                     "Host h b\nHostName x\nSequence 1 2 3\nHost b",
		"Host h\nPort 22\nHost h\nSequence 7001\nHost *\nSequence 8003\n": "Host h\nPort 22\nHost h\nSequence 1 2 3\nHost *\nSequence 8003\n",
	} {
		text, err := Change("config", []byte(old), "h", []Setting{{Keyword: "Sequence", Value: "1 2 3"}})
		if err != nil || string(text) != want {
			t.Errorf("%q:\ngot  %q, %v\nwant %q", old, text, err, want)
		}
	}
	const notOnly = ": not only for h; give h a "
	for old, want := range map[string]string{
		"Host h b\nSequence 7001\n":                              "config:2: Sequence" + notOnly + "Sequence in a block of its own above",
		"Host h\nPort 22\nHost *\nSequence 7001\n":               "config:4: Sequence" + notOnly + "Sequence in a block of its own above",
		"Sequence 7001\nHost h\n":                                "config:1: Sequence" + notOnly + "Sequence in a block of its own above",
		"Host h\nScheme token\nKeyFile /k\n":                     "config: no block for h sets Sequence",
		"Host b\nSequence 7001\n":                                `no profile for "h" in config`,
		"Host h\nSequence 7001\nOpenPorts 2\n":                   "config:2: Sequence: knock 2 of 3 goes to a guarded port (one of the OpenPorts)",
		"Host h\nSequence 7001\nHost h*\nOpenPorts 5\nOpenFor x": `config:5: OpenFor: "x" is not a time such as 10, 250ms or 1h30m`,
	} {
		text, err := Change("config", []byte(old), "h", []Setting{{Keyword: "Sequence", Value: "1 2 3"}})
		if err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %q, %v\nwant %s", old, text, err, want)
		}
	}
	text, err := Change("config", []byte("Host h\nScheme fwknop\nKeyFile a # x\nHMACKeyFile b\n"), "h",
		[]Setting{{Keyword: "KeyFile", Value: "c d"}, {Keyword: "HMACKeyFile", Value: "e"}})
	if want := "Host h\nScheme fwknop\nKeyFile \"c d\" # x\nHMACKeyFile e\n"; err != nil || string(text) != want {
		t.Errorf("got %q, %v; want %q", text, err, want)
	}
}

// TestChangeOfScheme: new lines take the place of the old secrets, with their indent, the first
// comment and the line ends of the file. Secrets of the old scheme disappear.
func TestChangeOfScheme(t *testing.T) {
	given := map[string][]Setting{
		"static": {{Keyword: "Scheme", Value: "static"}, {Keyword: "Sequence", Value: "1 2 3"}},
		"token":  {{Keyword: "Scheme", Value: "token"}, {Keyword: "KeyFile", Value: "h.key"}},
		"fwknop": {{Keyword: "Scheme", Value: "fwknop"}, {Keyword: "KeyFile", Value: "h 2.key"}, {Keyword: "HMACKeyFile", Value: "h.hmac"}},
	}
	for _, tt := range []struct{ old, scheme, want string }{
		{"Host h\n\tSequence 7001 8003 # x\n\tPort 22\n", "token", "Host h\n\tScheme token # x\n\tKeyFile h.key\n\tPort 22\n"},
		{"Host h\n  Sequence 7001", "token", "Host h\n  Scheme token\n  KeyFile h.key\n"},
		{"\ufeffHost h\r\n Port 22\r\n sequence=7001\r\n", "fwknop", "\ufeffHost h\r\n Port 22\r\n Scheme fwknop\r\n KeyFile \"h 2.key\"\r\n HMACKeyFile h.hmac\r\n"},
		{"Host h\n  scheme = static # x\n  Sequence 7001 # y\n", "token", "Host h\n  scheme = token # x\n  KeyFile h.key # y\n"},
		{"Host h\n  Scheme token\n  Port 22\n  KeyFile k # x\n", "static", "Host h\n  Scheme static\n  Port 22\n  Sequence 1 2 3 # x\n"},
		{"Host h\n  Scheme rotating\n  KeyFile k # x\n  Period 2h\n", "token", "Host h\n  Scheme token\n  KeyFile h.key # x\n  Period 2h\n"},
		{"Host h\nKeyFile k # x\nScheme token", "fwknop", "Host h\nKeyFile \"h 2.key\" # x\nHMACKeyFile h.hmac\nScheme fwknop"},
		{"Host h\nScheme fwknop\nHMACKeyFile m # x\nKeyFile k\n", "token", "Host h\nScheme token\nKeyFile h.key\n"},
		{"Host h\nScheme fwknop\nHMACKeyFile m # x\nKeyFile k # y\n", "static", "Host h\nScheme static\nSequence 1 2 3 # x\n"},
		// Settings of other blocks stay, and do not count for the new scheme either.
		{"Host h\nSequence 7001\nHost *\nKeyFile k\nPeriod 2h\n", "token", "Host h\nScheme token\nKeyFile h.key\nHost *\nKeyFile k\nPeriod 2h\n"},
		{"Host h\nSequence 7001\nHost *\nKeyCommand k\nScheme rotating\n", "token", "Host h\nScheme token\nKeyFile h.key\nHost *\nKeyCommand k\nScheme rotating\n"},
		{"Host h\nScheme token\nKeyFile k\nHost *\nPeriod 2h\n", "static", "Host h\nScheme static\nSequence 1 2 3\nHost *\nPeriod 2h\n"},
		{"Host h\nPort 22\nHost h\nScheme token\nHost h\nKeyFile k\nKnocks 3\n", "static", "Host h\nPort 22\nHost h\nScheme static\nHost h\nSequence 1 2 3\nKnocks 3\n"},
	} {
		text, err := Change("config", []byte(tt.old), "h", given[tt.scheme])
		if err != nil || string(text) != tt.want {
			t.Errorf("%q:\ngot  %q, %v\nwant %q", tt.old, text, err, tt.want)
		}
	}
	for _, tt := range []struct{ old, scheme, want string }{
		{"Host h b\nSequence 7001\n", "token", "config:2: Sequence: not only for h; give h a Sequence in a block of its own above"},
		{"Host h\nKeyFile k\nHost *\nScheme token\n", "static", "config:4: Scheme: not only for h; give h a Scheme in a block of its own above"},
		{"Host h\nScheme fwknop\nKeyFile k\nHost *\nHMACKeyFile m\n", "token", "config:5: HMACKeyFile: not only for h; give h a HMACKeyFile in a block of its own above"},
		{"Host *\nKeyFile k\nHost h\nSequence 7001\n", "token", "config:2: KeyFile: not only for h; give h a KeyFile in a block of its own above"},
		{"Host *\nKeyCommand k\nHost h\nSequence 7001\n", "token", "config:2: KeyCommand: not only for h; give h a KeyFile in a block of its own above"},
		{"Host h\nScheme token\nSkew 1m\nKeyFile k\nHost h\nPeriod 2h\nHost *\nTokenPort 7\n", "static",
			"config:3: Skew: not used with Scheme static; first remove Skew, Period from this block"},
		{"Host h\nScheme token\nKeyCommand k\n", "static", "config:3: KeyCommand: not used with Scheme static; first remove KeyCommand from this block"},
		// The lines of errors are those of the old text.
		{"Host h\nSequence 7001\nOpenPorts 22-23\n", "fwknop", "config:3: OpenPorts: fwknopd opens only single ports; 22-23/tcp is a range"},
		{"Host h\nScheme fwknop\nKeyFile k\nHMACKeyFile m\nOpenPorts 2\n", "static", "config:3: Sequence: knock 2 of 3 goes to a guarded port (one of the OpenPorts)"},
		{"Host h\nSequence 7001\nHost *\nAddressFamily inet6\n", "fwknop", "config:4: AddressFamily: fwknopd opens ports for IPv4 only"},
	} {
		text, err := Change("config", []byte(tt.old), "h", given[tt.scheme])
		if err == nil || err.Error() != tt.want {
			t.Errorf("%q:\ngot  %q, %v\nwant %s", tt.old, text, err, tt.want)
		}
	}
}
