package lab

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// imageCache is the folder of all images. An image is a folder there with the files of
// an installed Debian. The lab does not remove old images.
const imageCache = "/var/cache/portknock-lab"

// imagePackages are the packages of every image. Ansible needs python3.
const imagePackages = "systemd,systemd-sysv,dbus,nftables,iptables,openssh-server,iproute2,procps,kmod,ufw,knockd," +
	"fwknop-server,netcat-openbsd,util-linux,sudo,fish,python3"

// imageOptions are the options of mmdebstrap that decide what is in an image, beside the
// packages.
var imageOptions = []string{
	"--variant=apt", "--components=main", "--skip=output/dev", `--aptopt=APT::Install-Recommends "false"`,
	"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
	"--dpkgopt=path-exclude=/usr/share/locale/*",
}

// imageSetup is a shell script that changes a new image, whose folder is its argument.
//
// The script disables the units that load firewall rules, because a test enables only
// those that it needs. It also disables the timers that use the network or the disk, and
// the login prompt on a console that has no input.
const imageSetup = `set -e
for unit in firewalld ufw knockd fwknop-server nftables apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	logrotate.timer fstrim.timer; do
	chroot "$1" systemctl disable "$unit" || :
done
chroot "$1" systemctl mask console-getty.service tmp.mount
chroot "$1" systemd-machine-id-setup
echo server >"$1/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 server\n' >"$1/etc/hosts"
: >"$1/etc/resolv.conf"
`

// buildLimit bounds the time in which an image is made.
const buildLimit = 9 * time.Minute

var (
	imageMutex  sync.Mutex
	imageErrors = map[string]error{} // results of earlier calls of buildImage, by name
)

// image returns the folder with the files of a Debian release. The first caller on a
// machine makes the image, which takes a minute.
//
// A name such as trixie+cloud-init stands for a release with another package instead of
// firewalld. Debian does not install cloud-init beside firewalld.
func image(t TB, name string) string {
	t.Helper()
	Require(t, "mmdebstrap", "apt-get")
	release, extra, _ := strings.Cut(name, "+")
	options := append(slices.Clone(imageOptions), "--include="+imagePackages+","+cmp.Or(extra, "firewalld"))
	recipe := sha256.Sum256([]byte(strings.Join(options, "\n") + imageSetup))
	dir := filepath.Join(imageCache, fmt.Sprintf("%s-%x", name, recipe[:6]))
	imageMutex.Lock()
	defer imageMutex.Unlock()
	err, known := imageErrors[name]
	if !known {
		err = buildImage(dir, release, options)
		imageErrors[name] = err
	}
	if err != nil {
		Missing(t, fmt.Sprintf("an image of %s: %v", name, err))
	}
	return dir
}

// buildImage makes an image in dir, unless the image exists. Only one process builds at
// a time.
func buildImage(dir, release string, options []string) error {
	if err := os.MkdirAll(imageCache, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(imageCache+"/lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if _, err = os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mirror, err := debianMirror()
	if err != nil {
		return err
	}
	partial, err := os.MkdirTemp(imageCache, "partial-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(partial) }()
	setup := filepath.Join(partial, "setup")
	if err = os.WriteFile(setup, []byte(imageSetup), 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	root := filepath.Join(partial, "root")
	args := slices.Concat([]string{"--quiet", "--mode=root"}, options,
		[]string{"--customize-hook=sh " + setup + ` "$1"`, release, root, mirror})
	c := exec.CommandContext(ctx, "mmdebstrap", args...)
	c.Env = append(os.Environ(), "PATH="+systemPath(), "LC_ALL=C")
	// The kernel unmounts everything that mmdebstrap mounts when mmdebstrap ends.
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("mmdebstrap: %w\n%s", err, out)
	}
	return os.Rename(root, dir)
}

// debianMirror returns the URL of the Debian mirror that this machine's apt uses.
func debianMirror() (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(SITE)",
		"Created-By: Packages", "Origin: Debian", "Label: Debian").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets: %w", err)
	}
	mirror, _, _ := strings.Cut(string(out), "\n")
	if mirror == "" {
		return "", errors.New("apt has no Debian mirror in its sources")
	}
	return mirror, nil
}
