package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// contestant is a way to reach an SSH server.
type contestant struct {
	name     string
	programs []string // programs that must be installed
	// needed means that a target is about the contestant, so that the contestant gets
	// all its runs even if it is slow.
	needed bool
	direct bool // the contestant connects to an open port, whatever the server
	slow   bool // every run of the contestant takes seconds
	// argv returns the contestant's command, for a client whose address is from.
	argv func(r *rig, from netip.Addr) []string
}

// The ports of the server. A sequence opens each guarded port. The server drops packets
// to all ports except these four.
const (
	guardedPort = 22   // guarded port with three knocks
	longPort    = 2210 // guarded port with ten knocks
	otherPort   = 2211 // guarded port with three other knocks, for rules that include the profile other
	openPort    = 2222
)

// twoFamilies is the server's name that has an address of each family.
const twoFamilies = "both.example"

// forgetSpentTokens makes the server forget which tokens are spent, before the clock
// starts. A contestant comes from another address each second, but a user does not.
func forgetSpentTokens(c contestant) contestant {
	argv := c.argv
	c.argv = func(r *rig, from netip.Addr) []string {
		// The names of these sets end with the fingerprint of the key.
		_, _ = r.server.Try("sh", "-c", `nft -t list sets table inet portknock |
			awk '$1 == "set" && $2 ~ /^used(by[46])?_/ { print "flush set inet portknock " $2 }' | nft -f -`) // the run shows if this fails
		return argv(r, from)
	}
	return c
}

// sequence has only TCP knocks, because the contestant shellNC cannot send others.
var (
	sequence      = []string{"7001/tcp", "8003/tcp", "9005/tcp"}
	otherSequence = []string{"7103/tcp", "8107/tcp", "9109/tcp"}
	longSequence  = []string{"10421/udp", "10697/tcp", "10556/udp", "10459/tcp", "10205/udp",
		"10333/tcp", "10918/udp", "10777/tcp", "10132/udp", "10845/tcp"}
)

// shell returns the argv of a line for /bin/sh. In the line, HOST stands for the server's
// address and FROM for the client's.
func shell(line string) func(*rig, netip.Addr) []string {
	return func(r *rig, from netip.Addr) []string {
		return []string{"sh", "-c", strings.NewReplacer("HOST", r.addr, "FROM", from.String()).Replace(line)}
	}
}

// portknock connects to a port with a profile and further flags.
func portknock(name, profile string, port uint16, flags ...string) contestant {
	return contestant{name: "portknock" + name, needed: true, argv: func(r *rig, _ netip.Addr) []string {
		return append(append([]string{r.portknock, "-c", r.profile}, flags...), profile, fmt.Sprint(port))
	}}
}

// withOption returns c with one more setting, which depends on the client's address.
func withOption(c contestant, setting func(from netip.Addr) string) contestant {
	argv := c.argv
	c.argv = func(r *rig, from netip.Addr) []string {
		return slices.Insert(argv(r, from), 1, "--option", setting(from))
	}
	return c
}

// repeated returns c with Repeat 2, which sends each knock several times.
func repeated(c contestant) contestant {
	c.name = strings.Replace(c.name, ", ", ", Repeat 2, ", 1)
	return withOption(c, func(netip.Addr) string { return "Repeat=2" })
}

// portknockTo sends three knocks, and connects to an open port.
func portknockTo(port uint16) contestant { return portknock("", "vps", port) }

// ncTo connects to an open port with nc.
func ncTo(port uint16) contestant {
	return contestant{name: "nc", programs: []string{"nc"}, needed: true, direct: true, argv: func(r *rig, _ netip.Addr) []string {
		return []string{"nc", r.addr, fmt.Sprint(port)}
	}}
}

var (
	portknock3  = portknock(", 3 knocks", "vps", guardedPort)
	portknock10 = portknock(", 10 knocks", "long", longPort)
	token       = forgetSpentTokens(portknock(", token", "token", guardedPort))

	repeated3     = repeated(portknock3)
	repeated10    = repeated(portknock10)
	repeatedToken = repeated(token)

	// portknockSPA uses the same server, keys and packets as the fwknop client.
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

// The keys of the fwknop client and its server.
const (
	rijndaelKey = "VGhlc2UgMzIgYnl0ZXMgZ3VhcmQgYSB0ZXN0IG9ubHk="
	hmacKey     = "QW5kIHRoZXNlIGFyZSBmb3IgaXRzIG1lc3NhZ2UgY29kZS4="
)
