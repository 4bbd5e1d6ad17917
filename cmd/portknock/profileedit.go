package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/secret"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// profileEdit is the command that edits a copy of the profile file, and replaces the profile
// file by the copy when the copy has no errors.
type profileEdit struct{ config }

func (c *profileEdit) flags(a *app, f *pflag.FlagSet) { c.fileFlags(a, f) }

func (c *profileEdit) run(ctx context.Context, a *app, _ []string) error {
	options := c.pathFlag()
	path, err := c.changeable()
	if err != nil {
		return err
	}
	old, err := readProfiles(path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return notChanged(path, err)
	}
	draft := path + draftMark + strings.ToLower(rand.Text()[:draftID])
	if err := secret.Create(draft, old.text); err != nil {
		return &failure{exitFailed, err, folderHint}
	}
	text, file, err := editDraft(ctx, a, draft, old)
	if err == nil && text != nil {
		err = c.change(func(now profileText) (edited, error) {
			if !bytes.Equal(now.text, old.text) || (now.info == nil) != (old.info == nil) {
				return edited{}, &failure{code: exitProfile, err: fmt.Errorf("%s: the file has changed since you began to edit it", path)}
			}
			return edited{text: text}, nil
		})
	}
	if err != nil {
		return keepDraft(draft, old, err)
	}
	os.Remove(draft)
	var r report
	if text == nil {
		r.add("unchanged", "%s", path)
		return r.print(a)
	}
	r.add("changed", "%s", path)
	refreshSSHConfig(ctx, a, path, &r)
	if err := c.addProblems(ctx, &r, file, options); err != nil {
		return err
	}
	return r.print(a)
}

// The name of a draft is that of the profile file, draftMark and as many random characters as
// draftID says.
const (
	draftMark = ".edit-"
	draftID   = 8
)

// isDraftOf reports whether a file has the name of a draft of the profile file.
func isDraftOf(name, file string) bool {
	id, ok := strings.CutPrefix(name, file+draftMark)
	return ok && len(id) == draftID && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// editDraft lets the user edit the draft until it has no errors. It returns nil if the user wants
// no change.
func editDraft(ctx context.Context, a *app, draft string, old profileText) (text []byte, file *profile.File, err error) {
	answers := bufio.NewReader(a.stdin)
	for {
		if err := runEditor(ctx, draft); err != nil {
			return nil, nil, err
		}
		if text, err = os.ReadFile(draft); err != nil || bytes.Equal(text, old.text) {
			return nil, nil, err
		}
		if file, err = profile.Check(old.path, text, old.info); err == nil {
			err = checkNames(file)
		}
		if err == nil {
			return text, file, nil
		}
		err = &failure{code: exitProfile, err: err}
		if !term.IsTerminal(int(a.stdin.Fd())) {
			return nil, nil, err
		}
		a.log.say(always, "%v", err)
		fmt.Fprintf(os.Stderr, "e: edit again; q: quit without changes; ^C: quit, and keep %s [e] ", draft)
		answer, readErr := answers.ReadString('\n')
		switch {
		case readErr != nil:
			return nil, nil, err
		case strings.HasPrefix(strings.ToLower(strings.TrimSpace(answer)), "q"):
			return nil, nil, nil
		}
	}
}

// checkNames returns the first error of a profile that the file names.
func checkNames(file *profile.File) error {
	for _, e := range file.Entries() {
		for _, pattern := range e.Patterns {
			if !isName(pattern) {
				continue
			}
			if _, err := file.Lookup(pattern); err != nil && !errors.Is(err, profile.ErrNoProfile) {
				return err
			}
		}
	}
	return nil
}

// keepDraft adds to an error where the changes of the user are. It removes a draft without
// changes.
func keepDraft(draft string, old profileText, err error) error {
	if text, readErr := os.ReadFile(draft); readErr == nil && bytes.Equal(text, old.text) {
		os.Remove(draft)
		return err
	}
	f := &failure{code: exitFailed, err: err}
	errors.As(err, &f)
	hint := "your changes are only in " + draft + "\na later change of the profile file removes this copy after one day"
	return &failure{f.code, err, strings.TrimPrefix(f.hint+"\n"+hint, "\n")}
}

// runEditor lets the user edit a file with the program in $VISUAL or $EDITOR. As with git, the
// shell runs the program, because the variable may contain arguments.
func runEditor(ctx context.Context, path string) error {
	editor := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"))
	var c *exec.Cmd
	if runtime.GOOS == "windows" {
		words := []string{cmp.Or(editor, "notepad")}
		if _, err := exec.LookPath(words[0]); err != nil { // no program with blanks in its path
			words = strings.Fields(editor)
		}
		c = exec.Command(words[0], append(words[1:], path)...)
	} else {
		c = exec.Command("sh", "-c", cmp.Or(editor, "vi")+` "$@"`, "sh", path)
	}
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := c.Start()
	if err == nil {
		// ^C is for the editor. portknock ignores it only now, because the editor would inherit that.
		signal.Ignore(interrupts...)
		err = c.Wait()
		signal.Reset(interrupts...)
	}
	if err != nil {
		err = fmt.Errorf("the editor failed: %w; set VISUAL or EDITOR to another one", err)
	}
	return cmp.Or(context.Cause(ctx), err)
}

// addProblems adds lines about profiles that the user still has to deploy, or whose keys cannot
// be read.
func (c *profileEdit) addProblems(ctx context.Context, r *report, file *profile.File, options string) error {
	all, err := (&printStatus{printFlags{config: c.config}}).all(ctx, file)
	if err != nil {
		return err
	}
	var next []string
	for _, s := range all {
		for _, p := range s.Problems {
			switch p.ID {
			case problemUnreadable, problemRemoved:
				r.add("note", "%s: %s", s.Name, p.Text)
			case problemChanged:
				next = append(next, s.Name)
			}
		}
	}
	if len(next) > 0 {
		r.add("next", "portknock %sdeploy %s", options, strings.Join(next, " "))
	}
	return nil
}
