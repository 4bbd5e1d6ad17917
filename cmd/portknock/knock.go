package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/portknock/portknock/proxy"
	"github.com/spf13/pflag"
)

// knockOnly is the command that sends knocks for another program, which connects.
type knockOnly struct {
	remote
	wait bool
}

func (c *knockOnly) flags(a *app, f *pflag.FlagSet) {
	c.remote.flags(a, f)
	f.BoolVar(&c.wait, "wait", false, "keep knocking until the port answers")
}

func (c *knockOnly) run(ctx context.Context, a *app, args []string) error {
	p, last, err := c.config.login(ctx, a, cmp.Or(c.name, args[0]))
	if err != nil {
		return err
	}
	if c.wait {
		a.connecting = p.Name
	}
	host, port := c.target(args[0], p), p.Port
	if p.HostName == "" && c.name == "" {
		host, port = askSSH(ctx, host, port)
	}
	if len(args) == 2 {
		if port, err = parsePort(args[1]); err != nil {
			return err
		}
	}
	deployed, err := otherKnocks(ctx, a, p, last)
	if err != nil {
		return err
	}
	d, err := dialer(ctx, p, deployed, &a.log)
	if err != nil {
		return err
	}
	rounds := 1
	if deployed != nil {
		rounds = 2 // one with each profile's knocks
	}
	if c.wait {
		watched := d.watch(&a.log)
		err = d.Probe(ctx, host, cmp.Or(port, 22))
		watched()
		if err == nil {
			d.remember()
		}
	} else {
		err = knockOnce(ctx, d, host, rounds, &a.log)
	}
	if err == nil && isTerminal(os.Stderr) {
		a.log.say(always, "%s%s", d.knocker, textIf(c.wait, "; the port answers"))
	}
	return connectFailure(d, p, err)
}

// String says how many knocks have left, and to which addresses. It does not name their ports, which
// are secret.
func (k *knocker) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var parts []string
	for _, to := range slices.SortedFunc(maps.Keys(k.sent), netip.Addr.Compare) {
		n := k.sent[to]
		parts = append(parts, fmt.Sprintf("%d knock%s to %v", n, textIf(n != 1, "s"), to))
	}
	return "sent " + strings.Join(parts, " and ")
}

// knockOnce sends the first rounds of knocks to the first address of each family. It cannot
// know which of these addresses the next program will use.
func knockOnce(ctx context.Context, d *hostDialer, host string, rounds int, log *logger) error {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	began := time.Now()
	addrs, err := d.Addresses(ctx, host)
	if err != nil {
		return err
	}
	resolved := proxy.Event{Kind: proxy.Resolved, At: time.Since(began), Addrs: addrs}
	d.Trace(resolved)
	log.trace(resolved)
	sent := map[bool]bool{} // families that have their knocks; the key is true for IPv4
	for _, to := range addrs {
		if sent[to.Is4()] {
			continue
		}
		from, failed := d.Source(to)
		var s proxy.Sent
		for n := 0; n < rounds && failed == nil; n++ {
			if s, failed = d.Knock(ctx, from, to, n); s.Again != nil && failed == nil {
				time.Sleep(proxy.AgainAfter)
				failed = s.Again(ctx)
			}
		}
		if s.None { // the tokens are for other addresses
			continue
		}
		if failed != nil {
			err = &proxy.KnockError{To: to, Err: failed}
			continue
		}
		log.say(verbose, "sent knocks to %v from %v", to, from)
		sent[to.Is4()] = true
	}
	if len(sent) > 0 {
		return nil
	}
	return err
}

// askSSH returns the host and the port to which ssh would connect for an alias: the HostName
// and Port in ~/.ssh/config. It keeps a port that is not 0. Without ssh, the host is the
// alias itself.
func askSSH(ctx context.Context, alias string, port uint16) (string, uint16) {
	if _, err := netip.ParseAddr(alias); err == nil {
		return alias, port
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "ssh", "-G", "--", alias).Output()
	host := alias
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		switch key {
		case "hostname":
			host = value
		case "port":
			n, _ := parsePort(value)
			port = cmp.Or(port, n)
		}
	}
	return host, port
}
