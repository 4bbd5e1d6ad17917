package importer

import (
	"strings"
	"testing"
)

// homeINI is a complete portknocker.ini. Lines that a test adds begin at line 5.
const homeINI = "[home]\nipaddr = 192.0.2.1\ninterval = 500\nports = 111:TCP 222:udp 333:Tcp\n"

// homeBlock is the Host block that homeINI becomes, and homeWarning its warning.
const (
	homeBlock   = "Host home\n    HostName 192.0.2.1\n    Sequence 111/tcp 222/udp 333/tcp\n    KnockDelay 500ms\n"
	homeWarning = "f:3: [home] interval becomes KnockDelay; each login waits 1.5s, which most servers do not need\n"
)

func TestPortknockerReadsConfigparserFiles(t *testing.T) {
	for name, file := range map[string]string{
		"plain":            homeINI,
		"colons and case":  "[home]\nIPAddr: 192.0.2.1\nInterval : 500\nPORTS:111:TCP 222:udp 333:Tcp\n",
		"comments":         "# x\n; x\n" + "[home] \n  # ports = x\nipaddr=192.0.2.1\n;x\ninterval=500\nports=111:TCP 222:udp 333:Tcp",
		"Windows":          strings.ReplaceAll(homeINI, "\n", "\r\n"),
		"defaults":         "[home]\nipaddr = 192.0.2.1\n[DEFAULT]\ninterval = 500\nports = 111:TCP 222:udp 333:Tcp\n",
		"default replaced": "[DEFAULT]\ninterval = 7\n" + homeINI,
		"indented":         "  [home]\n  ipaddr = 192.0.2.1\n  interval = 500\n\n  ports = 111:TCP 222:udp 333:Tcp\n",
		"decimals":         strings.Replace(homeINI, "500", "500.0", 1),
	} {
		imports, warnings, err := Convert("portknocker", "f", []byte(file), Options{})
		if err != nil || len(imports) != 1 || string(imports[0].Block) != homeBlock || len(warnings) != 1 {
			t.Errorf("%s: got %s", name, converted("portknocker", file, Options{}))
		}
	}
	expectConverted(t, "portknocker", homeINI, Options{}, homeBlock+homeWarning)
	expectConverted(t, "portknocker", homeINI, Options{Section: "home", Name: "vps"}, strings.Replace(homeBlock, "home", "vps", 1)+homeWarning)
}

// TestPortknockerTimes: the pauses of a profile fit its limits, and a login has time for them.
func TestPortknockerTimes(t *testing.T) {
	const place = "f:3: [home] "
	waits := func(total string) string {
		return place + "interval becomes KnockDelay; each login waits " + total + ", which most servers do not need\n"
	}
	for interval, want := range map[string]string{
		"0.0001": "    KnockDelay 1us\n" + waits("3µs"),
		"0.25":   "    KnockDelay 250us\n" + waits("750µs"),
		"1500":   "    KnockDelay 1500ms\n    KnockTimeout 3s\n" + waits("4.5s"),
		"2000":   "    KnockDelay 2s\n    ConnectTimeout 21s\n    KnockTimeout 4s\n" + waits("6s"),
		"60000": "    KnockDelay 10s\n    ConnectTimeout 69s\n    KnockTimeout 20s\n" +
			place + "interval is longer than KnockDelay may be, which becomes 10s\n" + waits("30s"),
	} {
		block, _, _ := strings.Cut(homeBlock, "    KnockDelay")
		expectConverted(t, "portknocker", strings.Replace(homeINI, "500", interval, 1), Options{}, block+want)
	}
}

func TestPortknockerErrors(t *testing.T) {
	without := func(variable string) string {
		before, rest, _ := strings.Cut(homeINI, variable)
		_, after, _ := strings.Cut(rest, "\n")
		return before + after
	}
	with := func(variable, text string) string { return without(variable) + variable + " = " + text + "\n" }
	const none = "f: the file has no section that can be imported\n"
	for file, want := range map[string]string{
		without("ipaddr"):                none + "f:1: [home] is left out: it has no ipaddr\n",
		without("interval"):              none + "f:1: [home] is left out: it has no interval\n",
		without("ports"):                 none + "f:1: [home] is left out: it has no ports\n",
		with("ipaddr", "vps.example"):    "f:4: ipaddr: \"vps.example\" is not an IPv4 address such as 192.0.2.1\n",
		with("ipaddr", "2001:db8::1"):    "f:4: ipaddr: \"2001:db8::1\" is not an IPv4 address such as 192.0.2.1\n",
		with("ipaddr", "010.0.0.1"):      "f:4: ipaddr: \"010.0.0.1\" is not an IPv4 address such as 192.0.2.1\n",
		with("interval", "0"):            "f:4: interval: \"0\" is not a number of milliseconds such as 500\n",
		with("interval", "1e3"):          "f:4: interval: \"1e3\" is not a number of milliseconds such as 500\n",
		with("interval", "-5"):           "f:4: interval: \"-5\" is not a number of milliseconds such as 500\n",
		with("interval", "500ms"):        "f:4: interval: \"500ms\" is not a number of milliseconds such as 500\n",
		with("ports", "1:TCP  2:TCP"):    "f:4: ports: knock 2 of 3 is not a port and a protocol, such as 7000:tcp\n",
		with("ports", "1:TCP,2:TCP"):     "f:4: ports: knock 1 of 1 is not a port and a protocol, such as 7000:tcp\n",
		with("ports", "111"):             "f:4: ports: knock 1 of 1 is not a port and a protocol, such as 7000:tcp\n",
		with("ports", "1:TCP 0:TCP"):     "f:4: ports: knock 2 of 2 is not a port from 1 to 65535\n",
		with("ports", "1:TCP 65536:TCP"): "f:4: ports: knock 2 of 2 is not a port from 1 to 65535\n",
		with("ports", strings.TrimSpace(strings.Repeat("1:TCP ", 33))): "f:4: ports: 33 knocks are too many; at most 32 are allowed\n",
		with("ports", "%(base)s"):                                      "f:4: ports: portknocker interpolates a %; write the value itself\n",
		homeINI + "  444:TCP\n":                                        "f:4: ports: the value has several lines; write it in one line\n",
		with("ports", "\n  1:TCP 2:TCP"):                               "f:4: ports: the value has several lines; write it in one line\n",
		homeINI + "ports = 1:TCP\n":                                    "f:5: ports: line 4 sets it already; keep one of them\n",
		homeINI + "PORTS = 1:TCP\n":                                    "f:5: ports: line 4 sets it already; keep one of them\n",
		homeINI + "ipaddr\n":                                           "f:5: expected NAME = VALUE, such as interval = 500\n",
		homeINI + "[home]\n":                                           "f:5: section [home] appears twice; move its lines into the section at line 1\n",
		homeINI + "[x\n":                                               "f:5: write the first line of a section as [NAME]\n",
		homeINI + "[x] y\n":                                            "f:5: write the first line of a section as [NAME]\n",
		"ipaddr = 192.0.2.1\n" + homeINI:                               "f:1: expected [NAME] before the first line\n",
		"\ufeff" + homeINI:                                             "f:1: remove the control character U+FEFF\n",
		"[DEFAULT]\n" + homeINI[7:]:                                    none,
		homeINI + "port = 22\n":                                        homeBlock + "f:1: [home] has variables that are not imported: port (line 5)\n" + homeWarning,
		homeINI + "[b]\nipaddr = 1.2.3.4":                              homeBlock + homeWarning + "f:5: [b] is left out: it has no interval\n",
	} {
		expectConverted(t, "portknocker", file, Options{}, want)
	}
	expectConverted(t, "portknocker", homeINI, Options{Section: "Home"}, "f: the file has no section \"Home\"\n")
	expectConverted(t, "portknocker", homeINI, Options{Section: "DEFAULT"}, "f: the file has no section \"DEFAULT\"\n")
}

// TestPortknockerProfilesOfOneServer: a warning says which profile ssh finds.
func TestPortknockerProfilesOfOneServer(t *testing.T) {
	second := strings.Replace(homeINI, "home", "second", 1)
	got := converted("portknocker", homeINI+second, Options{})
	const want = "f:5: [second] has the same ipaddr as profile home, which ssh's %h finds; to use it, name profile second\n"
	if !strings.HasSuffix(got, want) {
		t.Errorf("got\n%s", got)
	}
}

func FuzzPortknocker(f *testing.F) {
	f.Add([]byte(homeINI))
	f.Add([]byte("[DEFAULT]\ninterval: 9000.5\n[a]\nports = 1:tcp\n  2:udp\nipaddr = 1.2.3.4\n;x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		imports, warnings, err := Convert("portknocker", "f", data, Options{})
		checkImports(t, data, imports, warnings, err)
	})
}
