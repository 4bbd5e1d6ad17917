package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/term"
)

// askPassword asks the user at the terminal for a password.
func askPassword(ctx context.Context, prompt string) (string, error) {
	device := "/dev/tty"
	if runtime.GOOS == "windows" {
		device = "CONIN$"
	}
	tty, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return "", errNoTerminal
	}
	defer tty.Close()
	before, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return "", errNoTerminal
	}
	defer term.Restore(int(tty.Fd()), before)
	fmt.Fprint(os.Stderr, prompt)
	defer fmt.Fprintln(os.Stderr)
	return await(ctx, func() (string, error) {
		password, err := term.ReadPassword(int(tty.Fd()))
		return string(password), err
	})
}

var errNoTerminal = errors.New("sudo wants a password; run this at a terminal, or allow sudo without a password")
