package main

import (
	"fmt"
	"net/netip"
	"strings"
)

// contestant is a way to reach an SSH server.
type contestant struct {
	name     string
	programs []string
	// needed: a target is about it, so it has all its runs however slow it is.
	needed bool
	direct bool // it goes to a port that is open, whatever the server
	slow   bool // it takes seconds each time
	// argv returns the command, for a client at an address.
	argv func(r *rig, from netip.Addr) []string
}

// The ports of the server. The guarded ones open to their sequence; all but
// these three drop what comes.
const (
	guardedPort = 22   // three knocks
	longPort    = 2210 // ten knocks
	openPort    = 2222
)

// twoFamilies is a server's name with an address of each.
const twoFamilies = "both.example"

// fresh has the server forget which tokens are spent, before the clock starts:
// no user comes from another address each second, as a contestant does.
func forgetSpentTokens(c contestant) contestant {
	argv := c.argv
	c.argv = func(r *rig, from netip.Addr) []string {
		for _, set := range []string{"used", "usedby4"} {
			_, _ = r.server.Try("nft", "flush set inet portknock "+set+"_token") // or else the run says so
		}
		return argv(r, from)
	}
	return c
}

// sequence is of TCP knocks, since the shell's recipe knows no other.
var (
	sequence     = []string{"7001/tcp", "8003/tcp", "9005/tcp"}
	longSequence = []string{"10421/udp", "10697/tcp", "10556/udp", "10459/tcp", "10205/udp",
		"10333/tcp", "10918/udp", "10777/tcp", "10132/udp", "10845/tcp"}
)

// shell is a command of /bin/sh in which HOST is the server.
func shell(line string) func(*rig, netip.Addr) []string {
	return func(r *rig, from netip.Addr) []string {
		return []string{"sh", "-c", strings.NewReplacer("HOST", r.addr, "FROM", from.String()).Replace(line)}
	}
}

// portknock connects by a profile to a port, with further flags.
func portknock(name, profile string, port uint16, flags ...string) contestant {
	return contestant{name: "portknock" + name, needed: true, argv: func(r *rig, _ netip.Addr) []string {
		return append(append([]string{r.portknock, "-c", r.profile}, flags...), profile, fmt.Sprint(port))
	}}
}

// portknockTo knocks three times, and connects to a port that is open.
func portknockTo(port uint16) contestant { return portknock("", "vps", port) }

// ncTo connects by netcat to a port that is open.
func ncTo(port uint16) contestant {
	return contestant{name: "nc", programs: []string{"nc"}, needed: true, direct: true, argv: func(r *rig, _ netip.Addr) []string {
		return []string{"nc", r.addr, fmt.Sprint(port)}
	}}
}

var (
	portknock3  = portknock(", 3 knocks", "vps", guardedPort)
	portknock10 = portknock(", 10 knocks", "long", longPort)
	token       = forgetSpentTokens(portknock(", token", "token", guardedPort))
	// The same server, keys and packets as those of the fwknop client.
	portknockSPA  = portknock(", fwknop", "fwknop", guardedPort)
	portknockBoth = portknock("", twoFamilies, guardedPort)
	portknockIPv4 = portknock(" -4", twoFamilies, guardedPort, "-4")

	ncOpen   = ncTo(openPort)
	ncatOpen = contestant{
		name:     "ncat",
		programs: []string{"ncat"},
		direct:   true,
		argv:     func(r *rig, _ netip.Addr) []string { return []string{"ncat", r.addr, fmt.Sprint(openPort)} },
	}
	socatOpen = contestant{
		name:     "socat",
		programs: []string{"socat"},
		direct:   true,
		argv: func(r *rig, _ netip.Addr) []string {
			return []string{"socat", "-", fmt.Sprintf("TCP:%s:%d", r.addr, openPort)}
		},
	}
	knockNC = contestant{
		name:     "knock + nc",
		programs: []string{"knock", "nc"},
		needed:   true,
		argv:     shell("knock HOST " + strings.ReplaceAll(strings.Join(sequence, " "), "/", ":") + " && exec nc HOST 22"),
	}
	shellNC = contestant{
		name:     "nc -w 1 for each knock",
		programs: []string{"nc"},
		slow:     true,
		argv:     shell("for p in 7001 8003 9005; do nc -w 1 HOST $p </dev/null; done; exec nc HOST 22"),
	}
	fwknopNC = contestant{
		name:     "fwknop + nc",
		programs: []string{"fwknop", "nc"},
		needed:   true,
		argv: shell("fwknop --no-rc-file --no-save-args -A tcp/22 -a FROM -D HOST -U bench --use-hmac" +
			" --key-base64-rijndael " + rijndaelKey + " --key-base64-hmac " + hmacKey + " >/dev/null && exec nc HOST 22"),
	}
)

// The keys of fwknop and its server.
const (
	rijndaelKey = "VGhlc2UgMzIgYnl0ZXMgZ3VhcmQgYSB0ZXN0IG9ubHk="
	hmacKey     = "QW5kIHRoZXNlIGFyZSBmb3IgaXRzIG1lc3NhZ2UgY29kZS4="
)
