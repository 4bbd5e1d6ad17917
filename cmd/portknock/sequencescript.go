package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
)

// This file makes the script of sequence --as sh, for a computer without portknock.

// printScript prints a POSIX shell script that sends the knocks of a profile that are current at t.
func (c *sequence) printScript(ctx context.Context, a *app, p *profile.Profile, t time.Time) error {
	picker, err := p.Picker(ctx)
	if err != nil {
		return keyFailure(p, err)
	}
	client, scheduled := picker.(knock.Client)
	if !scheduled {
		return &failure{exitUsage, fmt.Errorf("%s: a shell script cannot send the knocks of Scheme %s", p.Name, p.Scheme),
			"each packet works only once, so install portknock on that computer"}
	}
	_, _, window, err := client.Open(t)
	if err != nil {
		return keyFailure(p, err)
	}
	host, port := cmp.Or(p.HostName, p.Name), p.Port
	if p.HostName == "" {
		host, port = askSSH(ctx, host, port)
	}
	from := netip.IPv4Unspecified() // the script's computer is not known, but its family decides which token is sent
	if to, err := netip.ParseAddr(host); p.AddressFamily == "inet6" || err == nil && to.Is6() {
		from = netip.IPv6Unspecified()
	}
	round, err := client.Round(t, from, from, 0)
	if err != nil {
		return keyFailure(p, err)
	}
	s := knockScript{name: p.Name, host: host, port: cmp.Or(port, 22), openFor: p.OpenFor, until: window.End, knocks: round.Send}
	// The pauses together are shorter than the time in which knockd accepts a sequence.
	s.pause = max(100*time.Millisecond, min(500*time.Millisecond, p.KnockTimeout/time.Duration(len(s.knocks)+1)))
	return a.print("%s", s)
}

// knockScript is a shell script that sends knocks.
type knockScript struct {
	name, host string
	port       uint16 // port that the knocks open
	openFor    time.Duration
	until      time.Time // end of the window; zero if the knocks are always valid
	knocks     knock.Sequence
	pause      time.Duration // time for one knock
}

// String returns the text of the script.
func (s knockScript) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, `#!/bin/sh
# Send the knocks of the profile %s, from a computer without portknock.
# The knocks are a secret: keep this file private.
# Usage: sh FILE [HOST]; then connect to port %d within %v.
host=${1:-%s}
`, s.name, s.port, s.openFor, serverWord(s.host))
	if !s.until.IsZero() {
		fmt.Fprintf(&b, `
# The knocks are valid until %[1]s.
if [ "$(date +%%s)" -ge %[2]d ]; then
	echo "$0: these knocks were valid until %[1]s; for new ones: portknock sequence --as sh" >&2
fi
`, utc(s.until), s.until.Unix())
	}
	b.WriteString(scriptPrograms)
	payload := "x" // netcat cannot send a datagram without a payload
	lines, needs := "", map[knock.Transport]bool{}
	for _, step := range s.knocks {
		if len(step.Payload) > 0 {
			payload = octal(step.Payload)
		}
		needs[step.Transport] = true
		lines += fmt.Sprintf("knock %v %d\n", step.Transport, step.Port)
	}
	for _, t := range []knock.Transport{knock.TCP, knock.UDP} {
		if needs[t] {
			fmt.Fprintf(&b, `[ "$%[1]v" ] || { echo "$0: install bash, netcat-openbsd or ncat to send %[1]v knocks" >&2; exit 1; }
`, t)
		}
	}
	fmt.Fprintf(&b, scriptKnock, payload, s.pause.Seconds())
	b.WriteString(lines)
	return b.String()
}

// octal returns bytes as printf(1) reads them.
func octal(bytes []byte) string {
	var b strings.Builder
	for _, c := range bytes {
		fmt.Fprintf(&b, `\%03o`, c)
	}
	return b.String()
}

// scriptPrograms sets the variables tcp and udp to programs that send a knock. netcat has many
// variants with the same name, and some of them know neither UDP nor IPv6, so bash comes first.
const scriptPrograms = `
tcp='' udp=''
bash_tcp() { exec bash -c ': <>"/dev/tcp/$0/$1"' "$@"; }
bash_udp() { exec bash -c 'cat >"/dev/udp/$0/$1"' "$@"; }
if bash -c ': >/dev/udp/127.0.0.1/9' 2>/dev/null; then
	tcp=bash_tcp udp=bash_udp
fi
for nc in nc ncat netcat 'busybox nc'; do
	help=$($nc -h 2>&1 </dev/null)
	case $help in *[[:space:]]-l[[:space:],]*) tcp=${tcp:-$nc} ;; esac
	case $help in *[[:space:]]-u[[:space:],]*) udp=${udp:-"$nc -u"} ;; esac
done
`

// scriptKnock is the function that sends one knock. It has gaps for the payload of datagrams, and
// for the time that a knock takes.
const scriptKnock = `
payload() { printf '%s'; }

# knock TRANSPORT PORT sends one knock. After one second, the system would send a TCP knock
# again, which some servers do not accept, so knock ends its program before.
knock() {
	case $1 in
	tcp) $tcp "$host" "$2" </dev/null >/dev/null 2>&1 & ;;
	udp) payload | $udp "$host" "$2" >/dev/null 2>&1 & ;;
	esac
	sleep %.2g 2>/dev/null || sleep 1
	kill $! 2>/dev/null
	wait $! 2>/dev/null || :
}

`
