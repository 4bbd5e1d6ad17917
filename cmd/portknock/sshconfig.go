package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/secret"
	"github.com/spf13/pflag"
)

// sshConfig is the command that prints or installs the lines with which ssh starts portknock.
type sshConfig struct {
	config
	fdpass, install, include bool
}

func (c *sshConfig) flags(a *app, f *pflag.FlagSet) {
	c.config.flags(a, f)
	// Programs with an ssh of their own, such as paramiko, read ProxyCommand in ~/.ssh/config but not
	// ProxyUseFdpass, and then -F fails. So this is not the default.
	f.BoolVarP(&c.fdpass, "fdpass", "F", false, "pass the connected socket to ssh (-F with ProxyUseFdpass yes); only\nOpenSSH understands this, and not on Windows")
	f.BoolVar(&c.install, "install", false, "write the lines of all profiles to ~/.ssh/portknock.conf; later changes\nby portknock profile update this file")
	f.BoolVar(&c.include, "include", false, "with --install: also make \"Include portknock.conf\" the first line of\n~/.ssh/config")
}

func (c *sshConfig) run(ctx context.Context, a *app, names []string) error {
	switch {
	case c.include && !c.install:
		return usageError("--include is for ssh-config --install")
	case c.install && len(names) > 0:
		return usageError("ssh-config --install writes all profiles, so it takes no NAME")
	case c.install && len(c.options) > 0:
		return usageError("ssh-config --install repeats itself later without -o, so -o cannot be used")
	case c.path == "-":
		return usageError("ssh cannot read the profile from standard input; name the file with -c")
	case c.fdpass && runtime.GOOS == "windows":
		return usageError("-F cannot be used: ssh for Windows cannot take a connected socket")
	}
	if c.install {
		var r report
		if err := c.installAll(ctx, a, &r); err != nil {
			return err
		}
		return r.print(a)
	}
	command, err := c.proxyCommand()
	if err != nil {
		return err
	}
	text, err := c.lines(ctx, a, command, names)
	if err != nil {
		return err
	}
	return a.print("%s", text)
}

// proxyCommand returns the ProxyCommand for every host. It must be called before find sets the path.
func (c *sshConfig) proxyCommand() (string, error) {
	program, err := programWord()
	if err != nil {
		return "", err
	}
	words := []string{program}
	if c.fdpass {
		words = append(words, "-F")
	}
	if c.path != "" {
		path, err := filepath.Abs(c.path)
		if err != nil {
			return "", err
		}
		words = append(words, "-c", path)
	}
	for _, o := range c.options {
		words = append(words, "-o", o)
	}
	command := proxyWords(words...)
	if strings.ContainsAny(command, "\r\n") {
		return "", usageError("a line of ssh's configuration cannot contain the line break in %q", command)
	}
	return command + " --profile %n %h %p", nil
}

// programWord returns the word that starts this program: its name if it is in a folder of every
// PATH, otherwise its path. A program of the desktop often has another PATH than a terminal.
func programWord() (string, error) {
	path, err := programPath()
	common := []string{"/bin", "/usr/bin"}
	if runtime.GOOS != "darwin" {
		common = append(common, "/usr/local/bin")
	}
	if found, _ := exec.LookPath("portknock"); found == path && slices.Contains(common, filepath.Dir(path)) {
		return "portknock", err
	}
	return path, err
}

// lines returns the Host blocks of these profiles, or of all profiles and patterns that have a
// Scheme.
func (c *sshConfig) lines(ctx context.Context, a *app, command string, names []string) (string, error) {
	file, _, err := c.profiles(ctx, a, names...)
	if err != nil {
		return "", err
	}
	var all []*listed
	for _, name := range names {
		l := &listed{Patterns: []string{name}}
		l.apply(file, name, c.settings)
		all = append(all, l)
	}
	if len(names) == 0 {
		all = (&profileList{printFlags{config: c.config}}).all(file)
	}
	var blocks []string
	for _, l := range all {
		switch {
		case l.Scheme == "":
		case !slices.ContainsFunc(l.Patterns, func(p string) bool { return strings.Trim(p, "*") != "" }):
			blocks = append(blocks, "# Host * is left out: with it, ssh would start portknock for every host.\n")
		default:
			blocks = append(blocks, c.block(file, l, command))
		}
	}
	return strings.Join(blocks, "\n"), nil
}

// block returns the Host block for a profile or for the patterns of a Host line. A profile that is
// found by its HostName also gets that name, because users and scripts know servers by their address.
func (c *sshConfig) block(file *profile.File, l *listed, command string) string {
	patterns := l.Patterns
	if named, err := file.Lookup(patterns[0]); err == nil && l.Note != onlyPattern && l.HostName != "" {
		if found, err := file.Lookup(l.HostName); err == nil && found.Name == named.Name {
			patterns = append(slices.Clip(patterns), l.HostName)
		}
	}
	var hosts []string
	for _, p := range patterns {
		for _, h := range []string{p, strings.ToLower(p)} { // ssh compares case, and portknock prints names in lower case
			if !slices.Contains(hosts, h) {
				hosts = append(hosts, h)
			}
		}
	}
	text := "Host " + strings.Join(hosts, " ") + "\n"
	hostName := l.HostName
	if l.Note != onlyPattern { // a pattern has its HostName as the file has it, with %h
		hostName = strings.ReplaceAll(hostName, "%", "%%")
	}
	if hostName != "" {
		text += "    HostName " + hostName + "\n"
	}
	if l.Port != 22 {
		text += fmt.Sprintf("    Port %d\n", l.Port)
	}
	text += "    ProxyCommand " + command + "\n"
	if c.fdpass {
		text += "    ProxyUseFdpass yes\n"
	}
	return text
}

// installedName is the name of the file that --install writes, in ssh's folder.
const installedName = "portknock.conf"

// headerStart begins the first line of that file, which is the command that has written it.
const headerStart = "# Written by: portknock ssh-config --install"

// header returns the first line of the file. It must be called before find sets the path.
func (c *sshConfig) header() string {
	line := headerStart
	if c.fdpass {
		line += " -F"
	}
	if c.path != "" {
		path, err := filepath.Abs(c.path)
		if err != nil {
			path = c.path
		}
		line += " -c " + localWord(path)
	}
	return line
}

// installedBy returns the command that has written a file with this first line for the profile file
// at path. It returns nil if there was no such command.
func installedBy(first, path string) *sshConfig {
	paths := []string{path}
	if usual, _ := profile.Find(); usual == path {
		paths = append(paths, "")
	}
	for _, p := range paths {
		for _, fdpass := range []bool{false, true} {
			c := &sshConfig{config: config{path: p}, fdpass: fdpass}
			if c.header() == first {
				return c
			}
		}
	}
	return nil
}

// sshFolder returns the folder of ssh's configuration. ssh ignores HOME and takes the home folder of
// the user's passwd entry.
func sshFolder() (string, error) {
	if runtime.GOOS == "windows" {
		home, err := os.UserHomeDir()
		return filepath.Join(home, ".ssh"), err
	}
	u, err := user.Current()
	if err == nil && !filepath.IsAbs(u.HomeDir) {
		err = fmt.Errorf("the user %s has no home folder", u.Username)
	}
	if err != nil {
		return "", err
	}
	return filepath.Join(u.HomeDir, ".ssh"), nil
}

// installAll writes the file with the lines of all profiles, and includes it in ssh's configuration or
// says how. It adds to the report what it has done.
func (c *sshConfig) installAll(ctx context.Context, a *app, r *report) error {
	dir, err := sshFolder()
	if err != nil {
		return err
	}
	includes := newSSHIncludes(dir)
	changed, err := c.write(ctx, a, includes.file)
	if err != nil {
		return err
	}
	verb := "unchanged"
	if changed {
		verb = "wrote"
	}
	r.add(verb, "%s", includes.file)
	main := filepath.Join(dir, "config")
	text, info, err := readIfExists(main)
	if err != nil {
		return err
	}
	included, already := includes.insert(string(text))
	switch {
	case already:
		r.add("include", "%s includes this file already", main)
		return nil
	case !c.include:
		r.add("include", "add this as the first line of %s: %s", main, includes.line())
		return nil
	}
	if err := secret.Replace(main, []byte(included), info); err != nil {
		return err
	}
	r.add("include", "added to %s as its first line: %s", main, includes.line())
	return nil
}

// write writes the file with the lines of all profiles, and reports whether it has changed. Another
// process may change the profiles meanwhile, so write reads them again until the file has them.
func (c *sshConfig) write(ctx context.Context, a *app, file string) (changed bool, err error) {
	// Afterwards, find sets the path.
	header := c.header()
	command, err := c.proxyCommand()
	if err != nil {
		return false, err
	}
	for range 10 {
		lines, err := c.lines(ctx, a, command, nil)
		if err != nil {
			return changed, err
		}
		text := header + "\n# portknock replaces this file when it changes a profile.\n\n" + lines
		old, err := c.checkInstalled(file)
		if err != nil || old == text {
			return changed, err
		}
		if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return changed, err
		}
		if err := secret.Replace(file, []byte(text), nil); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, fmt.Errorf("%s: other programs change it all the time", file)
}

// checkInstalled returns the text of the installed file, "" if there is none. It returns an error if
// somebody else has written the file, or portknock for another profile file.
func (c *sshConfig) checkInstalled(file string) (text string, err error) {
	old, _, err := readIfExists(file)
	if old == nil || err != nil {
		return "", err
	}
	path, _ := c.find() // the profile file may not exist yet
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(old), "\n")
	switch {
	case installedBy(first, path) != nil:
		return string(old), nil
	case strings.HasPrefix(first, headerStart):
		return "", &failure{exitFailed, fmt.Errorf("%s has the hosts of another profile file; its first line tells which", file),
			"to have the hosts of this profile file there instead, remove the file first\n" +
				"for both, add the output of portknock ssh-config to ~/.ssh/config yourself"}
	}
	return "", &failure{exitFailed, fmt.Errorf("%s: portknock has not written this file", file),
		"rename it, or add the output of portknock ssh-config to ~/.ssh/config yourself"}
}

// checkInstall returns the error that installAll would return before it has written anything.
func (c *sshConfig) checkInstall() error {
	dir, err := sshFolder()
	if err == nil {
		_, err = (&sshConfig{config: c.config}).checkInstalled(filepath.Join(dir, installedName))
	}
	return err
}

// refreshSSHConfig updates the file that ssh-config --install has written for the profile file at path,
// and adds that to the report. Without such a file it does nothing. If it fails, it only warns, because
// the profiles are changed already.
func refreshSSHConfig(ctx context.Context, a *app, path string, r *report) {
	dir, err := sshFolder()
	if err != nil {
		return
	}
	file := filepath.Join(dir, installedName)
	text, _, err := readIfExists(file)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	changed := false
	if first, _, _ := strings.Cut(string(text), "\n"); err == nil {
		c := installedBy(first, path)
		if c == nil {
			return
		}
		changed, err = c.write(ctx, a, file)
	}
	switch {
	case err != nil:
		a.log.say(always, "%s is not updated: %v", file, err)
		a.log.say(always, "hint: mend this, then run: portknock ssh-config --install")
	case changed:
		r.add("updated", "%s", file)
	}
}

// sshIncludes says how ssh's configuration includes the installed file.
type sshIncludes struct {
	file string // path of the installed file
	base string // folder of relative paths in an Include
}

// newSSHIncludes returns the sshIncludes for the folder of ssh's configuration. Although ssh ignores
// HOME when it looks for its configuration, an Include without an absolute path is relative to the
// folder .ssh in HOME.
func newSSHIncludes(dir string) sshIncludes {
	i := sshIncludes{file: filepath.Join(dir, installedName), base: dir}
	if home := os.Getenv("HOME"); runtime.GOOS != "windows" && filepath.IsAbs(home) {
		i.base = filepath.Join(home, ".ssh")
	}
	return i
}

// line returns the line that includes the file.
func (i sshIncludes) line() string {
	switch {
	case filepath.Dir(i.file) == i.base:
		return "Include " + installedName
	case strings.ContainsAny(i.file, " \t"):
		return `Include "` + i.file + `"`
	}
	return "Include " + i.file
}

// insert returns ssh's configuration with the line as its first one, and whether text includes the file
// for all hosts already. An Include below a Host or Match line does not count.
func (i sshIncludes) insert(text string) (included string, already bool) {
	const bom = "\ufeff"
	text, hasBOM := strings.CutPrefix(text, bom)
	for line := range strings.Lines(text) {
		words := sshWords(line)
		if len(words) == 0 {
			continue
		}
		keyword := strings.ToLower(words[0])
		if keyword == "host" || keyword == "match" {
			break
		}
		if keyword == "include" && slices.ContainsFunc(words[1:], i.matches) {
			return "", true
		}
	}
	newline := "\n"
	if first, _, _ := strings.Cut(text, "\n"); strings.HasSuffix(first, "\r") {
		newline = "\r\n"
	}
	text = i.line() + newline + text
	if hasBOM {
		text = bom + text
	}
	return text, false
}

// matches reports whether a word of an Include matches the file.
func (i sshIncludes) matches(word string) bool {
	if rest, ok := strings.CutPrefix(word, "~"); ok {
		word = filepath.Join(filepath.Dir(i.base), rest)
	} else if !filepath.IsAbs(word) {
		word = filepath.Join(i.base, word)
	}
	ok, err := filepath.Match(word, i.file)
	return ok && err == nil
}

// sshWords returns the words of a line of ssh's configuration, without quotes.
func sshWords(line string) (words []string) {
	const blanks = " \t\r\n\f="
	for line = strings.TrimLeft(line, blanks); line != ""; line = strings.TrimLeft(line, blanks) {
		end := blanks
		if line[0] == '"' {
			line, end = line[1:], `"`
		}
		word := line
		if i := strings.IndexAny(line, end); i >= 0 {
			word, line = line[:i], line[i+1:]
		} else {
			line = ""
		}
		words = append(words, word)
	}
	return words
}

// readIfExists reads a file. If the file does not exist, text and info are nil.
func readIfExists(path string) (text []byte, info fs.FileInfo, err error) {
	info, err = os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err == nil && !info.Mode().IsRegular(): // reading a pipe could block
		err = fmt.Errorf("%s: not a regular file", path)
	case err == nil:
		text, err = os.ReadFile(path)
	}
	return text, info, err
}
