package main

import (
	"context"
	"net/netip"

	"github.com/portknock/portknock/knock"
	"github.com/portknock/portknock/knock/profile"
	"github.com/spf13/pflag"
)

func keygenFlags(a *app, f *pflag.FlagSet) {
	f.StringVar(&a.from, "from", "", "derive the key from that in this `FILE`, as DeriveHostKey does")
	f.StringVar(&a.host, "host", "", "with --from, the profile's `NAME`")
}

// runKeygen prints a key, or writes it to a file that is not there yet.
func runKeygen(_ context.Context, a *app, args []string) error {
	if len(args) > 1 {
		return usageError("keygen takes at most one FILE")
	}
	k, err := a.makeKey()
	if err != nil {
		return err
	}
	text := []byte(k.Reveal() + "\n")
	if len(args) == 0 || args[0] == "-" {
		return a.printSecret(text, "keygen FILE")
	}
	return createSecret(args[0], text)
}

func (a *app) makeKey() (knock.Key, error) {
	if (a.from == "") != (a.host == "") {
		return knock.Key{}, usageError("--from and --host go together")
	}
	if a.from == "" {
		return knock.NewKey(), nil
	}
	if _, err := netip.ParseAddr(a.host); err == nil {
		return knock.Key{}, usageError("--host %s: a key is derived for a profile's name, never for an address", a.host)
	}
	if profile.CheckHost(a.host) != nil { // no profile can be called so
		return knock.Key{}, usageError("--host %.300q is not the name of one host", a.host)
	}
	master, err := profile.LoadKey(a.from)
	if err != nil {
		return knock.Key{}, &failure{code: exitProfile, err: err}
	}
	return master.Derive(a.host), nil
}
