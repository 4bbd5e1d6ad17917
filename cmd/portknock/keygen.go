package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

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
	text := k.Reveal() + "\n"
	if len(args) == 0 {
		return a.print("%s", text)
	}
	return createSecret(args[0], []byte(text))
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
	if strings.ContainsAny(a.host, "*?! ") {
		return knock.Key{}, usageError("--host %q is not the name of one host", a.host)
	}
	master, err := profile.LoadKey(a.from)
	if err != nil {
		return knock.Key{}, &failure{code: exitProfile, err: err}
	}
	return master.Derive(a.host), nil
}

// createSecret writes a new file that only its owner can read. It never
// overwrites: a key that is lost locks its owner out.
func createSecret(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return &failure{code: exitUsage, err: fmt.Errorf("%s exists, and a key is never overwritten", path)}
	}
	if err != nil {
		return fmt.Errorf("cannot write the key: %w", err)
	}
	if err := fill(f, text); err != nil {
		os.Remove(path)
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}
