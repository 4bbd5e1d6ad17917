package profile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/adrg/xdg"
)

// Find returns the path of the profile file, portknock/config in the first of
// the XDG config folders that has it: on Linux ~/.config, then /etc/xdg. If
// none has, the error is [fs.ErrNotExist] and the path is where the user's own
// would be. It reads the environment each time.
func Find() (string, error) {
	// Without a home the library would look in the root, and relative to where
	// the program happens to run.
	if runtime.GOOS != "windows" && !filepath.IsAbs(os.Getenv("HOME")) && !filepath.IsAbs(os.Getenv("XDG_CONFIG_HOME")) {
		return "", errors.New("no profile file: neither HOME nor XDG_CONFIG_HOME is set to an absolute path")
	}
	xdg.Reload()
	const name = "portknock/config"
	// Not xdg.ConfigFile, which creates folders.
	path, err := xdg.SearchConfigFile(name)
	if err != nil {
		path = filepath.Join(xdg.ConfigHome, name)
		return path, fmt.Errorf("no profile file %s: %w", path, fs.ErrNotExist)
	}
	return path, nil
}
