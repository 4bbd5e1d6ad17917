package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"runtime"

	"github.com/portknock/portknock/knock/secret"
)

func (a *app) print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.stdout, format, args...)
	return err
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printSecret writes rules or a key to standard output. It warns if standard output is a
// file that other users can read, because a shell's redirection makes such files. The
// warning suggests argument, with which portknock writes the file itself.
func (a *app) printSecret(text []byte, argument string) error {
	info, err := a.stdout.Stat()
	if err == nil && runtime.GOOS != "windows" && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		a.log.say(always, "warning: other users can read the output file (mode %04o); run chmod 600, or use %s",
			info.Mode().Perm(), argument)
	}
	_, err = a.stdout.Write(text)
	return err
}

// createSecret calls [secret.Create]. If the file exists, the error has the code exitUsage.
func createSecret(path string, text []byte) error {
	err := secret.Create(path, text)
	if errors.Is(err, fs.ErrExist) {
		err = &failure{code: exitUsage, err: err}
	}
	return err
}
