package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/portknock/portknock/knock/profile"
	"github.com/portknock/portknock/knock/secret"
)

// deployment is what a server has now: a profile with the settings of the rules that the
// server has loaded. The file deployed/NAME beside the profile file stores it. NAME is the
// Name of the profile.
//
// The file is a profile file with one Host block. The comment on its first line is the JSON
// object of this struct. The ValidUntil in the block is that of the server's rules. If the
// profile has a KeyFile or an HMACKeyFile, the folder has a copy, and the block names the
// copy. The deployment still works when the user replaces the key. With DeriveHostKey, the
// copy is the derived key. With a KeyCommand, the folder has no key.
type deployment struct {
	profile *profile.Profile
	config  string // path of the profile file; set by loadDeployment

	Time        time.Time `json:"time"`                  // when the server got the rules
	Format      string    `json:"format"`                // format of the rules, such as nftables
	ID          string    `json:"id"`                    // id of the script with the rules
	Version     string    `json:"version"`               // version of portknock that made the rules
	Server      string    `json:"server"`                // the server as the user named it for ssh
	Fingerprint string    `json:"fingerprint,omitempty"` // fingerprint of the key; "" if it has none
	Flags       []string  `json:"flags,omitempty"`       // flags of deploy, for the next deploy
}

// near is the time before the rules expire in which they should be renewed. Rules that are
// valid for a short time need no renewal on the first day.
func (d *deployment) near() time.Duration {
	return min(deployedNear, d.profile.ValidUntil.Sub(d.Time)/2)
}

// deployedFile returns the path of the file with the deployment of a profile. The file name
// is the profile's name. Every byte that a file system may not accept is written as "%" and
// two hexadecimal digits, so that two names never have the same file. Only a very long name
// is shortened, and gets a hash.
func deployedFile(config, name string) string {
	return filepath.Join(filepath.Dir(config), "deployed", fileName(name))
}

// fileName returns the name of a file for a profile, as deployedFile describes it.
func fileName(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			b.WriteByte(c)
		// Files of other kinds begin with a dot, or end with ".key".
		case c == '.' && i > 0 && i < len(name)-1 && name[i:] != keySuffix:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	file := b.String()
	const longest = 200 // bytes; most file systems allow 255, and the name of a key is longer
	if len(file) > longest {
		sum := sha256.Sum256([]byte(name))
		file = file[:longest] + "~" + hex.EncodeToString(sum[:8])
	}
	if !filepath.IsLocal(file) { // the name of a device on Windows, such as nul
		file = fmt.Sprintf("%%%02x", file[0]) + file[1:]
	}
	return file
}

// keySuffix is the end of the name of a copied key: NAME.ID.key. ID has 16 random
// hexadecimal digits. A copy thus never replaces a file that a deployment uses.
const keySuffix = ".key"

// isKeyOf reports whether a file has the name of a copied key of the deployment at path.
func isKeyOf(file, path string) bool {
	rest, ok := strings.CutPrefix(file, path+".")
	id, isKey := strings.CutSuffix(rest, keySuffix)
	return ok && isKey && len(id) == 16 && strings.Trim(id, "0123456789abcdef") == ""
}

// loadDeployment returns the deployment of a profile, or nil if the profile was not deployed. A
// profile file that is standard input has no deployments.
func loadDeployment(config, name string) (*deployment, error) {
	if config == "-" {
		return nil, nil
	}
	return loadDeployedFile(config, deployedFile(config, name), name)
}

// loadDeployedFile is loadDeployment for a file. If name is "", it takes the name in the file.
func loadDeployedFile(config, path, name string) (*deployment, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = cmp.Or(secret.CheckOwner(path, info), secret.CheckReaders(path, info, "a deployment"))
	}
	if err != nil {
		return nil, &failure{code: exitProfile, err: err}
	}
	d, err := readDeployment(path, info, name)
	switch {
	case errors.Is(err, fs.ErrNotExist): // another process has just removed it
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, &failure{code: exitProfile, err: err}
	case err != nil:
		return nil, &failure{exitProfile, err, "the file is damaged: remove it, then run: portknock deploy " + cmp.Or(name, "HOST")}
	}
	d.config = config
	return d, nil
}

// listDeployments returns all deployments beside a profile file. An error is about the first one
// that cannot be read; the others are returned.
func listDeployments(config string) (all []*deployment, err error) {
	files, err := deploymentFiles(config)
	for _, path := range files {
		d, fileErr := loadDeployedFile(config, path, "")
		err = cmp.Or(err, fileErr)
		if d != nil && deployedFile(config, d.profile.Name) == path { // the user may have copied the file
			all = append(all, d)
		}
	}
	return all, err
}

// deploymentFiles returns the paths of the files with the deployments beside a profile file.
func deploymentFiles(config string) (paths []string, err error) {
	if config == "-" {
		return nil, nil
	}
	dir := filepath.Dir(deployedFile(config, "x"))
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !strings.HasSuffix(e.Name(), keySuffix) {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// readDeployment returns the deployment in a file. The result has no config. If name is "", it
// takes the name in the file.
func readDeployment(path string, info fs.FileInfo, name string) (*deployment, error) {
	if !info.Mode().IsRegular() { // reading a pipe could block
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	file, err := profile.Load(path)
	if err != nil {
		return nil, err
	}
	d := &deployment{}
	if err := json.Unmarshal([]byte(file.Comment()), d); err != nil || d.Time.IsZero() {
		return nil, fmt.Errorf("%s:1: not the first line of a deployment", path)
	}
	if entries := file.Entries(); name == "" && len(entries) > 0 {
		name = entries[0].Patterns[0] // a deployment has one Host block, with one name
	}
	if d.profile, err = file.Lookup(name); err != nil {
		return nil, err
	}
	return d, nil
}

// saveDeployment stores a deployment in place of the previous one. The ValidUntil of
// d.profile must be that of the server's rules, and d.Fingerprint that of the key in the
// rules. An empty Version becomes the version of this program, and a zero Time becomes now.
//
// At any moment, even if the process is killed, the folder has the whole old deployment or
// the whole new one, with its keys. If a profile file is not a regular file, it has no
// deployments, and saveDeployment does nothing.
func saveDeployment(config string, d *deployment) error {
	if info, err := os.Stat(config); config == "-" || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	path := deployedFile(config, d.profile.Name)
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return locked(filepath.Dir(path), func() error {
		defer removeLeftovers(config, d.profile.Name)
		p, err := copyKeys(d, path)
		if err != nil {
			return fmt.Errorf("%s: %w", d.profile.Name, err)
		}
		facts := *d
		facts.Version = cmp.Or(d.Version, programVersion())
		facts.Time = cmp.Or(d.Time, now()).UTC().Truncate(time.Second)
		facts.Server = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) { // JSON allows some, but a profile file does not
				return -1
			}
			return r
		}, d.Server)
		header, err := json.Marshal(facts)
		if err != nil {
			return err
		}
		var b strings.Builder
		fmt.Fprintf(&b, "# %s\n", header)
		p.WriteTo(&b) // a strings.Builder never returns an error
		return secret.Replace(path, []byte(b.String()), nil)
	})
}

// copyKeys copies the keys of a deployment into the folder of path. It returns the profile
// to write to path, which names the copies without their folder. The folder can thus be
// moved.
func copyKeys(d *deployment, path string) (*profile.Profile, error) {
	p := *d.profile
	used := p // the profile as loadDeployment will return it
	copyKey := func(file, usedFile *string, read func(path string) ([]byte, error)) error {
		if *file == "" {
			return nil
		}
		text, err := read(*file)
		if err != nil {
			return err
		}
		id := make([]byte, 8)
		rand.Read(id) // rand.Read never returns an error: it ends the program instead
		*usedFile = path + "." + hex.EncodeToString(id) + keySuffix
		*file = filepath.Base(*usedFile)
		return secret.Replace(*usedFile, text, nil)
	}
	read := secret.Read
	if p.DeriveHostKey && p.KeyFile != "" {
		p.DeriveHostKey, used.DeriveHostKey = false, false
		read = func(master string) ([]byte, error) { return derivedKey(master, p.Name) }
	}
	err := copyKey(&p.KeyFile, &used.KeyFile, read)
	if err == nil {
		err = copyKey(&p.SPA.HMACKeyFile, &used.SPA.HMACKeyFile, secret.Read)
	}
	if err != nil {
		return nil, err
	}
	if len(p.KeyCommand) > 0 {
		return &p, nil // the command may ask the user, so do not run it again
	}
	server, err := used.Server(context.Background()) // reads only the copies
	if err == nil && server.Fingerprint != d.Fingerprint {
		err = fmt.Errorf("%s: the key has changed since the rules were made", d.profile.KeyFile)
	}
	return &p, err
}

// derivedKey returns the text of the key that a profile with this name and DeriveHostKey uses.
// path is that of the master key.
func derivedKey(path, name string) ([]byte, error) {
	master, err := profile.LoadKey(path)
	if err != nil {
		return nil, err
	}
	return []byte(master.Derive(name).Reveal() + "\n"), nil
}

// removeDeployment removes the deployment of a profile and its keys. It does nothing if the
// profile was not deployed.
func removeDeployment(config, name string) error {
	path := deployedFile(config, name)
	if _, err := os.Stat(filepath.Dir(path)); config == "-" || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return locked(filepath.Dir(path), func() error {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		removeLeftovers(config, name)
		return err
	})
}

// removeLeftovers removes the keys that the deployment of a profile does not use, and the
// incomplete files of processes that were killed. It removes no key if the deployment
// cannot be read. The caller holds the lock of the folder.
func removeLeftovers(config, name string) {
	d, err := loadDeployment(config, name)
	path := deployedFile(config, name)
	entries, _ := os.ReadDir(filepath.Dir(path))
	for _, e := range entries {
		file := filepath.Join(filepath.Dir(path), e.Name())
		isUsed := d != nil && (filepath.Base(d.profile.KeyFile) == e.Name() || filepath.Base(d.profile.SPA.HMACKeyFile) == e.Name())
		if strings.HasPrefix(e.Name(), ".portknock-") || isKeyOf(file, path) && !isUsed && err == nil {
			os.Remove(file)
		}
	}
}

// lockPatience is how long locked waits for other processes. They need milliseconds, or seconds if
// many of them wait for a slow disk.
const lockPatience = time.Minute

// locked calls write while this process holds the lock of a folder. The system releases the
// lock when the process ends, even if it is killed.
func locked(dir string, write func() error) error {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // releases the lock
	for began := time.Now(); isLocked(f); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > lockPatience {
			return fmt.Errorf("%s: another portknock has locked this file for %v", f.Name(), lockPatience)
		}
	}
	return write()
}

// sameKnocks reports whether the same knocks open the guards of two profiles, whose Servers
// are s and t. Settings that do not change the knocks, such as OpenFor or ConnectTimeout, do
// not matter.
func sameKnocks(p, q *profile.Profile, s, t profile.Server) bool {
	return p.Skew == q.Skew && reflect.DeepEqual(s, t) &&
		// Only an SPA packet contains the ports to open.
		(s.SPA == nil || slices.Equal(p.OpenPorts, q.OpenPorts))
}

// login returns the profile of a host for a command that sends knocks, and what was
// deployed with it. The deployment is nil if the profile was not deployed, or if the deployment
// cannot be read: it never prevents a login. login warns if the server's rules expire soon.
func (c *config) login(ctx context.Context, a *app, host string) (*profile.Profile, *deployment, error) {
	_, all, err := c.profiles(ctx, a, host)
	if err != nil {
		return nil, nil, err
	}
	p, d := all[0], c.deployment(a, all[0].Name)
	if d != nil {
		p.ValidUntil = cmp.Or(p.ValidUntil, d.profile.ValidUntil)
		repeatIfDeployed(p, d.Format)
		repeatIfDeployed(d.profile, d.Format)
	}
	warnOfExpiry(a, p, d)
	return p, d, nil
}

// deployAdvice is in warnings of connect, before the name of a profile.
const deployAdvice = "; run: portknock deploy "

// removedProfile returns the deployment of a host that the profile file does not have any more, or nil.
func (c *config) removedProfile(ctx context.Context, a *app, host string) *deployment {
	if _, _, err := c.profiles(ctx, a, host); !errors.Is(err, profile.ErrNoProfile) {
		return nil
	}
	return c.deployment(a, host)
}

// deployment returns the deployment of a profile that c has found, or nil. It warns if the
// deployment cannot be used. If the user may not read the deployment at all, it belongs to another
// user, and the warning appears only with -v.
func (c *config) deployment(a *app, name string) *deployment {
	d, err := loadDeployment(c.path, name)
	if err == nil {
		return d
	}
	level := always
	if errors.Is(err, fs.ErrPermission) {
		level = verbose
	}
	a.log.say(level, "%s: %s", name, err)
	if f, ok := errors.AsType[*failure](err); ok && f.hint != "" {
		a.log.say(level, "hint: %s", f.hint)
	}
	return nil
}

// otherKnocks returns the profile of the deployment d if its knocks differ from those of p,
// because the profile has changed. The server may then have either. Otherwise otherKnocks
// returns nil. If the deployment cannot be used, otherKnocks warns and returns nil. An error
// is about the key of p. The deployment may be nil.
func otherKnocks(ctx context.Context, a *app, p *profile.Profile, d *deployment) (*profile.Profile, error) {
	if d == nil {
		return nil, nil
	}
	s, err := p.Server(ctx)
	if err != nil {
		return nil, keyFailure(p, err)
	}
	d.profile.Runner = p.Runner
	t, err := d.profile.Server(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		// A deploy that ended a moment ago may have removed the key. Read the new file.
		if latest, failed := loadDeployment(d.config, p.Name); latest != nil && failed == nil {
			d = latest
			d.profile.Runner = p.Runner
			t, err = d.profile.Server(ctx)
		}
	}
	text := ""
	switch {
	case err != nil:
		text = "the deployed key cannot be read: " + err.Error()
	case t.Fingerprint != d.Fingerprint && len(d.profile.KeyCommand) > 0:
		text = fmt.Sprintf("KeyCommand %s: not the key that was deployed at %s", d.profile.KeyCommand[0], utc(d.Time))
	case t.Fingerprint != d.Fingerprint:
		text = d.profile.KeyFile + ": not the key that was deployed"
	case sameKnocks(p, d.profile, s, t):
		return nil, nil
	default:
		if _, err := d.profile.Picker(ctx); err != nil {
			text = "the deployed profile cannot be used: " + err.Error()
			break
		}
		a.log.say(always, "%s: the profile has changed since it was deployed at %s; trying both"+deployAdvice+"%s",
			p.Name, utc(d.Time), p.Name)
		return d.profile, nil
	}
	a.log.say(always, "%s: %s; trying only the profile"+deployAdvice+"%s", p.Name, text, p.Name)
	return nil, nil
}
