package profile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/adrg/xdg"
)

// Find returns the path of the profile file. This file is portknock/config in the first
// XDG config folder that has it: on Linux ~/.config, then /etc/xdg. If no folder has the
// file, the error matches [fs.ErrNotExist], and the path is that of the user's own file.
//
// Outside Windows, HOME or XDG_CONFIG_HOME must be an absolute path. Otherwise Find
// searches only the folders of the system. If these do not have the file, the path is "".
// Find reads the environment each time.
func Find() (string, error) {
	xdg.Reload()
	const name = "portknock/config"
	if runtime.GOOS != "windows" && !filepath.IsAbs(os.Getenv("HOME")) && !filepath.IsAbs(os.Getenv("XDG_CONFIG_HOME")) {
		// The library would look in the root folder or in the working folder. Therefore search
		// only the folders of the system.
		for _, dir := range xdg.ConfigDirs {
			path := filepath.Join(dir, name)
			if _, err := os.Stat(path); err == nil {
				return path, nil
			}
		}
		return "", fmt.Errorf("no profile file in %s, and HOME is not an absolute path: %w",
			strings.Join(xdg.ConfigDirs, " or "), fs.ErrNotExist)
	}
	// Do not use xdg.ConfigFile here: it creates folders.
	path, err := xdg.SearchConfigFile(name)
	if err != nil {
		path = filepath.Join(xdg.ConfigHome, name)
		return path, fmt.Errorf("no profile file %s: %w", path, fs.ErrNotExist)
	}
	return path, nil
}
