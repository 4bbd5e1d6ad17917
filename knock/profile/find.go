package profile

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/adrg/xdg"
)

// Find returns the path of the profile file. This file is portknock/config in the first
// XDG config folder that has it: on Linux ~/.config, then /etc/xdg. If no folder has the
// file, the error matches [fs.ErrNotExist], and the path is that of the user's own file.
//
// Outside Windows, if HOME is not an absolute path, the home folder is that of the user's
// entry in /etc/passwd, as for ssh. If that is missing, and XDG_CONFIG_HOME is not an
// absolute path either, Find searches only the folders of the system. If these do not have
// the file, the path is "". Find reads the environment each time.
func Find() (string, error) { return find(passwdHome) }

// find is Find, with a function that returns the home folder of the user's passwd entry.
func find(passwdHome func() string) (string, error) {
	xdg.Reload()
	own := xdg.ConfigHome
	if runtime.GOOS != "windows" && !filepath.IsAbs(os.Getenv("HOME")) && !filepath.IsAbs(os.Getenv("XDG_CONFIG_HOME")) {
		// Without HOME, the library returns a folder below the root folder or no folder.
		if own = passwdHome(); own != "" {
			own = filepath.Join(own, configFolder())
		}
	}
	// Do not use xdg.ConfigFile here: it creates folders.
	for _, dir := range append([]string{own}, xdg.ConfigDirs...) {
		if dir == "" {
			continue
		}
		path := filepath.Join(dir, profileFile)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	if own == "" {
		return "", fmt.Errorf("no profile file in %s, and HOME is not an absolute path: %w",
			strings.Join(xdg.ConfigDirs, " or "), fs.ErrNotExist)
	}
	path := filepath.Join(own, profileFile)
	return path, fmt.Errorf("no profile file %s: %w", path, fs.ErrNotExist)
}

const profileFile = "portknock/config"

// configFolder returns the user's XDG config folder, relative to the home folder.
func configFolder() string {
	if runtime.GOOS == "darwin" {
		return "Library/Application Support"
	}
	return ".config"
}

// homeDir returns the user's home folder. Outside Windows, this is HOME if it is an absolute
// path, or else the home folder of the user's passwd entry. If there is neither, homeDir
// returns "".
func homeDir() string {
	home, err := os.UserHomeDir()
	switch {
	case err == nil && filepath.IsAbs(home):
		return home
	case runtime.GOOS == "windows":
		return ""
	}
	return passwdHome()
}

// passwdHome returns the home folder of the user's passwd entry, or "" if the user
// has no entry, or if its home folder is not an absolute path. A program without cgo reads only
// /etc/passwd.
func passwdHome() string {
	u, err := user.LookupId(strconv.Itoa(os.Getuid()))
	if err != nil || !filepath.IsAbs(u.HomeDir) {
		return ""
	}
	return u.HomeDir
}
