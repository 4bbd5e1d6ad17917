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

// Find returns the path of the profile file, portknock/config in the first of
// the XDG config folders that has it: on Linux ~/.config, then /etc/xdg. If
// none has, the error is [fs.ErrNotExist] and the path is where the user's own
// would be; "" if the environment names no home. Find reads the environment each
// time.
func Find() (string, error) {
	xdg.Reload()
	const name = "portknock/config"
	if runtime.GOOS != "windows" && !filepath.IsAbs(os.Getenv("HOME")) && !filepath.IsAbs(os.Getenv("XDG_CONFIG_HOME")) {
		// The library would look in the root folder or in the working folder.
		// Only the folders of the system remain.
		for _, dir := range xdg.ConfigDirs {
			path := filepath.Join(dir, name)
			if _, err := os.Stat(path); err == nil {
				return path, nil
			}
		}
		return "", fmt.Errorf("no profile file in %s, and HOME is not an absolute path: %w",
			strings.Join(xdg.ConfigDirs, " or "), fs.ErrNotExist)
	}
	// Not xdg.ConfigFile, which creates folders.
	path, err := xdg.SearchConfigFile(name)
	if err != nil {
		path = filepath.Join(xdg.ConfigHome, name)
		return path, fmt.Errorf("no profile file %s: %w", path, fs.ErrNotExist)
	}
	return path, nil
}
