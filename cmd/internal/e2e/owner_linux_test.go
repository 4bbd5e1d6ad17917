package e2e

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/portknock/portknock/cmd/internal/lab"
)

// TestImportKeepsOwners: the profile file keeps its group and mode, and nothing
// but its keys is new beside it.
func TestImportKeepsOwners(t *testing.T) {
	lab.Require(t)
	dir := t.TempDir()
	config, rc := filepath.Join(dir, "config"), filepath.Join(dir, "rc")
	for _, file := range []struct{ path, text string }{
		{config, "Host *\n    ConnectTimeout 20\n"},
		{rc, "[h]\nSPA_SERVER 192.0.2.1\nKEY abc\nHMAC_KEY xyz\n"},
	} {
		if err := os.WriteFile(file.path, []byte(file.text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(config, 0, 65534); err != nil {
		t.Fatal(err)
	}
	lab.NewHost(t, "client").Run(t, "portknock", "profile", "import", "-c", config, rc)
	info, err := os.Stat(config)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Gid != 65534 || info.Mode().Perm() != 0o644 {
		t.Errorf("group %d, mode %o", st.Gid, info.Mode().Perm())
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 4 {
		t.Errorf("%v, %v", entries, err)
	}
}
