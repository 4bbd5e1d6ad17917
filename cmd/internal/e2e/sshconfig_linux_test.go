package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// newHome gives root on a host a new, empty home folder, and returns the folder. ssh reads the home
// folder from /etc/passwd.
func newHome(t testing.TB, h *lab.Host) string {
	t.Helper()
	home := t.TempDir()
	passwd := lab.File(t, "passwd", "root:x:0:0:root:"+home+":/bin/sh")
	h.Shell(t, "sed 1d /etc/passwd >>"+passwd+"; chmod 644 "+passwd+"; mount --bind "+passwd+" /etc/passwd")
	return home
}

// writeFile writes a file that only its owner can read.
func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestSSHConfigLogsIn: ssh understands the lines of ssh-config, and logs in with them, under each
// kind of name, and although the path of the profile file has odd characters.
func TestSSHConfigLogsIn(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	addr := r.addr().String()
	dir := filepath.Join(t.TempDir(), `it's 100% "my" $folder`)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	profile := filepath.Join(dir, "config")
	writeFile(t, profile, strings.Join([]string{
		"Host vps web", "HostName " + addr, threeKnocks,
		"Host VPS-2 a_b.c-d", "HostName " + addr, threeKnocks,
		"Host *.lab !bad.lab", "HostName " + addr, threeKnocks,
		"Host bare", threeKnocks,
		"Host " + addr, threeKnocks,
		"Host far", "HostName fe80::1%%eth0", "Port 2222", threeKnocks,
		"Host *", "ConnectTimeout 25", ""}, "\n"))
	names := []string{"vps", "web", "VPS-2", "vps-2", "a_b.c-d", "x.lab", addr}
	for _, flags := range [][]string{nil, {"-F"}} {
		lines := r.client.Run(t, "portknock", append([]string{"ssh-config", "-c", profile}, flags...)...)
		config := r.sshd.ClientConfig(t, lines)
		for _, name := range names {
			if got := r.client.Run(t, "ssh", "-G", "-F", config, name); !strings.Contains(got, "\nhostname "+addr+"\n") ||
				!strings.Contains(got, "\nproxyusefdpass "+map[bool]string{true: "yes", false: "no"}[flags != nil]+"\n") {
				t.Errorf("%q: ssh -G %s prints\n%s", flags, name, got)
			}
			if got := sshOutput(t, r.client, "-F", config, name, "echo in"); got != "in\n" {
				t.Errorf("%q: ssh %s prints %q, want in", flags, name, got)
			}
		}
		// ssh has the HostName of a profile that has none.
		bare := r.sshd.ClientConfig(t, lines, "Host bare", "HostName "+addr)
		if got := sshOutput(t, r.client, "-F", bare, "bare", "echo in"); got != "in\n" {
			t.Errorf("%q: ssh bare prints %q, want in", flags, got)
		}
		if got := r.client.Run(t, "ssh", "-G", "-F", config, "far"); !strings.Contains(got, "\nhostname fe80::1%eth0\n") ||
			!strings.Contains(got, "\nport 2222\n") {
			t.Errorf("%q: ssh -G far prints\n%s", flags, got)
		}
		for _, name := range []string{"bad.lab", "other"} {
			if got := r.client.Run(t, "ssh", "-G", "-F", config, name); strings.Contains(got, "\nproxycommand ") {
				t.Errorf("%q: ssh starts portknock for %s:\n%s", flags, name, got)
			}
		}
	}
}

// TestSSHConfigNamesProgram: the ProxyCommand has the bare name of the program only if the program is
// in a folder of every PATH.
func TestSSHConfigNamesProgram(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	for dir, want := range map[string]string{"/usr/local/bin": "portknock", "/opt": "/opt/portknock"} {
		r.client.Shell(t, "copy=$(command -v portknock) && mount -t tmpfs tmpfs "+dir+" && cp \"$copy\" "+dir)
		for _, call := range []string{"portknock", dir + "/portknock"} {
			got := r.client.Run(t, "env", "PATH="+dir+":/usr/bin:/bin", call, "ssh-config", "-c", r.profile, "vps")
			if !strings.Contains(got, "\n    ProxyCommand "+want+" -c ") {
				t.Errorf("%s in %s prints\n%s", call, dir, got)
			}
		}
		// Another program of this name comes first in PATH.
		r.client.Shell(t, "mkdir -p /run/first && cp /bin/true /run/first/portknock")
		got := r.client.Run(t, "env", "PATH=/run/first:"+dir+":/usr/bin:/bin", dir+"/portknock", "ssh-config", "-c", r.profile, "vps")
		if !strings.Contains(got, "\n    ProxyCommand "+dir+"/portknock -c ") {
			t.Errorf("behind another portknock in PATH, %s/portknock prints\n%s", dir, got)
		}
	}
}

// TestSSHConfigInstall: --install and --include make ssh use portknock for all profiles. They never
// touch what somebody else has written.
func TestSSHConfigInstall(t *testing.T) {
	t.Parallel()
	r := newDefaultRig(t)
	home := newHome(t, r.client)
	folder, main, installed := filepath.Join(home, ".ssh"), filepath.Join(home, ".ssh", "config"), filepath.Join(home, ".ssh", "portknock.conf")
	run := func(code int, texts []string, args ...string) string {
		t.Helper()
		out, err := r.client.Command("env", append([]string{"HOME=" + home, "portknock", "ssh-config", "-c", r.profile}, args...)...).CombinedOutput()
		lab.ExpectEnd(t, err, string(out), code, texts...)
		return string(out)
	}
	login := func(when string) {
		t.Helper()
		if out, err := r.client.Try("env", "HOME="+home, "ssh", "vps", "echo in"); err != nil || out != "in\n" {
			t.Errorf("%s, ssh vps: %v\n%s", when, err, out)
		}
	}
	mode := func(path string, want os.FileMode) {
		t.Helper()
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", path, info, err, want)
		}
	}

	run(0, []string{"wrote     " + installed, "add this as the first line of " + main + ": Include portknock.conf\n"}, "--install")
	mode(folder, 0o700)
	mode(installed, 0o600)
	if _, err := os.Stat(main); err == nil {
		t.Errorf("%s exists, although --include was not given", main)
	}
	run(0, []string{"unchanged " + installed, "added to " + main + " as its first line"}, "--install", "--include")
	mode(main, 0o600)
	if got := lab.ReadFile(t, main); got != "Include portknock.conf\n" {
		t.Errorf("%s has %q", main, got)
	}

	// A configuration that exists keeps its mode, and is a symbolic link as before.
	before := lab.ReadFile(t, r.sshd.ClientConfig(t, "# mine", "Host other", "User me"))
	dotfile := filepath.Join(t.TempDir(), "ssh_config")
	writeFile(t, dotfile, before)
	if err := os.Chmod(dotfile, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(main); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dotfile, main); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		run(0, nil, "--install", "--include")
		if got, want := lab.ReadFile(t, dotfile), "Include portknock.conf\n"+before; got != want {
			t.Errorf("the configuration is\n%s\nwant\n%s", got, want)
		}
		mode(dotfile, 0o644)
		if info, err := os.Lstat(main); err != nil || info.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s is not a symbolic link any more", main)
		}
	}
	run(0, []string{"includes this file already"}, "--install")
	login("with the installed lines")
	run(0, []string{"wrote"}, "--install", "-F")
	login("with -F")

	// A change of the profiles by portknock updates the file, and keeps the flags.
	imported := lab.File(t, "fwknoprc", "[box]", "SPA_SERVER 192.0.2.9", "ACCESS tcp/22", "KEY somekey", "HMAC_KEY otherkey", "USE_HMAC Y")
	if out := r.client.Run(t, "portknock", "profile", "import", "-c", r.profile, imported); !strings.Contains(out, "updated   "+installed+"\n") {
		t.Errorf("profile import prints\n%s", out)
	}
	if got := r.client.Run(t, "env", "HOME="+home, "ssh", "-G", "box"); !strings.Contains(got, "\nhostname 192.0.2.9\n") || !strings.Contains(got, "portknock -F ") {
		t.Errorf("after the import, ssh -G box prints\n%s", got)
	}

	// The file has the hosts of one profile file, and somebody else may have a file of this name.
	other := vpsProfile(t, threeKnocks)
	text := lab.ReadFile(t, installed)
	for _, c := range []struct{ text, profile, want string }{
		{text, other, "has the hosts of another profile file"},
		{"Host mine\n", r.profile, "portknock has not written this file"},
		{"", r.profile, "portknock has not written this file"},
	} {
		writeFile(t, installed, c.text)
		r.profile = c.profile
		run(1, []string{c.want}, "--install", "--include")
		if got := lab.ReadFile(t, installed); got != c.text {
			t.Errorf("the file is changed to\n%s", got)
		}
		imported := lab.File(t, "fwknoprc", fmt.Sprintf("[box%d]", len(c.text)), "SPA_SERVER 192.0.2.9", "ACCESS tcp/22", "KEY somekey", "HMAC_KEY otherkey", "USE_HMAC Y")
		if out := r.client.Run(t, "portknock", "profile", "import", "-c", r.profile, imported); strings.Contains(out, "updated") {
			t.Errorf("profile import prints\n%s", out)
		}
		if got := lab.ReadFile(t, installed); got != c.text {
			t.Errorf("profile import changes the file to\n%s", got)
		}
	}
}

// TestSSHConfigInstallsAtOnce: of several processes that change the profiles at the same time, none
// leaves a file without the change of another.
func TestSSHConfigInstallsAtOnce(t *testing.T) {
	t.Parallel()
	client := lab.NewHost(t, "client")
	home := newHome(t, client)
	profile := vpsProfile(t, threeKnocks)
	client.Run(t, "env", "HOME="+home, "portknock", "ssh-config", "-c", profile, "--install", "--include")
	const n = 8
	var all []*lab.Cmd
	for i := range n {
		// The profile file is changed before the program starts.
		c := client.Command("sh", "-c", fmt.Sprintf("printf 'Host h%d\\n%s\\n' >>%s && HOME=%s exec portknock ssh-config -c %[3]s --install --include", i, threeKnocks, profile, home))
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for _, c := range all {
		if err := c.Wait(); err != nil {
			t.Errorf("ssh-config: %v", err)
		}
	}
	text := lab.ReadFile(t, filepath.Join(home, ".ssh", "portknock.conf"))
	for i := range n {
		if !strings.Contains(text, fmt.Sprintf("\nHost h%d\n", i)) {
			t.Errorf("the file has no host h%d:\n%s", i, text)
		}
	}
	if got := lab.ReadFile(t, filepath.Join(home, ".ssh", "config")); got != "Include portknock.conf\n" {
		t.Errorf("the configuration is %q", got)
	}
}

// TestDeployNamesNextCommands: the commands that a deploy names lead to a login. After that, deploy
// names only the login. HOME is not the home folder where ssh has its configuration.
func TestDeployNamesNextCommands(t *testing.T) {
	t.Parallel()
	for _, ownFile := range []bool{false, true} {
		t.Run(fmt.Sprintf("--ssh-config=%v", ownFile), func(t *testing.T) {
			t.Parallel()
			r := newDeployRig(t, threeKnocks)
			home := newHome(t, r.client)
			if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(home, ".ssh", "config")
			install, ssh := "ssh-config --install --include", "ssh "
			flags := []string{"deploy", "-c", r.profile}
			if ownFile {
				file = filepath.Join(home, "my config")
				install, ssh = "ssh-config vps >>'"+file+"'", "ssh -F '"+file+"' "
				flags = append(flags, "--ssh-config", file)
			}
			writeFile(t, file, lab.ReadFile(t, r.sshd.ClientConfig(t)))
			deploy := func(host string) (next []string) {
				t.Helper()
				for line := range strings.Lines(r.client.Run(t, "portknock", append(flags, host)...)) {
					if command, ok := strings.CutPrefix(line, "next      "); ok {
						next = append(next, strings.TrimSpace(command))
					}
				}
				return next
			}
			next := deploy("root@vps")
			if want := []string{"portknock -c " + r.profile + " " + install, ssh + "root@vps"}; !slices.Equal(next, want) {
				t.Fatalf("deploy names the commands %q, want %q", next, want)
			}
			r.client.Shell(t, next[0])
			if got, err := r.client.Try("sh", "-c", next[1]+" echo in"); err != nil || got != "in\n" {
				t.Errorf("%s: %v\n%s", next[1], err, got)
			}
			r.expect(t, r.attacker, lab.Dropped)
			if next = deploy("vps"); !slices.Equal(next, []string{ssh + "root@vps"}) {
				t.Errorf("the second deploy names the commands %q, want only %sroot@vps", next, ssh)
			}
		})
	}
}

// TestProfileAddInstallsSSHConfig: three commands lead to a login through a guard, and each names the
// next one. Later changes of the profiles update ssh's lines.
func TestProfileAddInstallsSSHConfig(t *testing.T) {
	t.Parallel()
	r := newDeployRig(t, threeKnocks)
	home := newHome(t, r.client)
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(home, ".ssh", "config"), lab.ReadFile(t, r.sshd.ClientConfig(t)))
	installed := filepath.Join(home, ".ssh", "portknock.conf")
	portknock := func(args ...string) (out string, err error) {
		t.Helper()
		b, err := r.client.Command("env", append([]string{"-u", "XDG_CONFIG_HOME", "HOME=" + home, "portknock"}, args...)...).CombinedOutput()
		return string(b), err
	}
	do := func(want string, args ...string) {
		t.Helper()
		if out, err := portknock(args...); err != nil || !strings.HasSuffix(out, want) {
			t.Fatalf("portknock %q: %v, want %q at the end of\n%s", args, err, want, out)
		}
	}
	// If the lines cannot be installed, nothing is done.
	writeFile(t, installed, "Host mine\n")
	out, err := portknock("profile", "add", "--ssh-config", "--host", r.addr().String(), "vps")
	lab.ExpectEnd(t, err, out, 1, "portknock has not written this file")
	if out, err := portknock("profile", "list"); err == nil {
		t.Errorf("there is a profile file:\n%s", out)
	}
	if err := os.Remove(installed); err != nil {
		t.Fatal(err)
	}

	do("next      portknock deploy vps\n", "profile", "add", "--ssh-config", "--host", r.addr().String(), "vps")
	do("next      ssh vps\n", "deploy", "vps")
	if out, err := r.client.Try("env", "-u", "XDG_CONFIG_HOME", "HOME="+home, "ssh", "vps", "echo in"); err != nil || out != "in\n" {
		t.Errorf("ssh vps: %v\n%s", err, out)
	}
	// A server is also known by its address.
	if out := r.client.Run(t, "env", "HOME="+home, "ssh", "-G", r.addr().String()); !strings.Contains(out, "portknock --profile %n %h %p\n") {
		t.Errorf("ssh -G %v prints\n%s", r.addr(), out)
	}
	r.expect(t, r.attacker, lab.Dropped)

	has := func(name string, want bool) {
		t.Helper()
		if text := lab.ReadFile(t, installed); strings.Contains(text, "\nHost "+name+"\n") != want {
			t.Errorf("the file has the host %s: %v, want %v\n%s", name, !want, want, text)
		}
	}
	do("updated   "+installed+"\nnext      portknock deploy web\n", "profile", "add", "--host", "192.0.2.77", "web")
	has("web 192.0.2.77", true)
	do("updated   "+installed+"\n", "profile", "remove", "web")
	has("web 192.0.2.77", false)
	out, err = r.client.Try("env", "-u", "XDG_CONFIG_HOME", "HOME="+home, "EDITOR=sed -i 's/^Host vps$/Host vps box/'", "portknock", "profile", "edit")
	if err != nil || !strings.Contains(out, "updated   "+installed+"\n") {
		t.Errorf("profile edit: %v\n%s", err, out)
	}
	has("vps box "+r.addr().String(), true)
}
