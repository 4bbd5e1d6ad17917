package main

import (
	"context"
	"net/netip"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

// keygen is the command that makes a key.
type keygen struct{ from, host string }

func (c *keygen) flags(_ *app, f *pflag.FlagSet) {
	f.StringVar(&c.from, "from", "", "derive the key from the key in the file `MASTERKEY`, as DeriveHostKey\ndoes")
	f.StringVar(&c.host, "host", "", "with --from, the profile's `NAME`")
}

// run prints a new key, or writes it to a file that does not exist yet.
func (c *keygen) run(_ context.Context, a *app, args []string) error {
	_, err := netip.ParseAddr(c.host)
	switch {
	case (c.from == "") != (c.host == ""):
		return usageError("--from and --host must be used together")
	case err == nil:
		return usageError("--host %s: use the profile's name; a key is never derived for an address", c.host)
	case c.host != "" && profile.CheckHost(c.host) != nil: // no profile can have this name
		return usageError("--host %.300q is not a host name", c.host)
	}
	key := knock.NewKey()
	if c.from != "" {
		master, err := profile.LoadKey(c.from)
		if err != nil {
			return &failure{code: exitProfile, err: err}
		}
		key = master.Derive(c.host)
	}
	text := []byte(key.Reveal() + "\n")
	if len(args) == 0 || args[0] == "-" {
		return a.printSecret(text, "keygen FILE")
	}
	return createSecret(args[0], text)
}
