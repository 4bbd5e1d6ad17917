package lab

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Require skips the test unless it runs as root and the programs exist. Under
// PORTKNOCK_LAB=require, it fails the test instead. Either way the message names
// all that is missing.
func Require(t TB, programs ...string) {
	t.Helper()
	var lacking []string
	if os.Geteuid() != 0 {
		lacking = append(lacking, "root")
	}
	for _, p := range programs {
		if _, err := lookPath(systemPath(), p); err != nil {
			lacking = append(lacking, p)
		}
	}
	if len(lacking) > 0 {
		Missing(t, strings.Join(lacking, ", "))
	}
}

// Missing ends the test because the machine lacks what. It skips the test, or fails it
// under PORTKNOCK_LAB=require.
func Missing(t TB, what string) {
	t.Helper()
	if os.Getenv("PORTKNOCK_LAB") == "require" {
		t.Fatalf("the lab needs %s, and PORTKNOCK_LAB=require", what)
		return
	}
	t.Skipf("the lab needs %s", what)
}

// systemPath returns PATH with the folders of an administrator's programs, which a
// user's PATH may lack.
func systemPath() string { return os.Getenv("PATH") + ":/usr/sbin:/sbin" }

// lookPath is exec.LookPath with path instead of the PATH of this process.
func lookPath(path, name string) (string, error) {
	if strings.Contains(name, "/") {
		return exec.LookPath(name)
	}
	for _, dir := range filepath.SplitList(path) {
		if file, err := exec.LookPath(filepath.Join(dir, name)); err == nil && filepath.IsAbs(file) {
			return file, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// unsupported reports whether err means that the kernel, or a container around this
// process, does not allow new namespaces.
func unsupported(err error) bool {
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EINVAL)
}
