package secret

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/windows"
)

// grant gives a file the access control list of a text, without the entries of its folder.
func grant(t *testing.T, path, acl string) {
	t.Helper()
	sd, err := windows.SecurityDescriptorFromString(acl)
	if err != nil {
		t.Fatal(err)
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		t.Fatal(err)
	}
	err = windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// acl returns the access control list of a file.
func acl(t *testing.T, path string) string {
	t.Helper()
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	return sd.String()
}

// TestChecksFollowAccessControlList: WD is everyone, and ME is the user.
func TestChecksFollowAccessControlList(t *testing.T) {
	me, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	world, err := windows.CreateWellKnownSid(windows.WinWorldSid)
	if err != nil {
		t.Fatal(err)
	}
	everyone := account(world) // in the language of this Windows
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ acl, key, owner, readers string }{ // the texts must be in the errors
		{acl: "D:P(A;;FA;;;ME)"},
		{acl: "D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;ME)"},
		{"D:P(A;;FA;;;ME)(A;;FR;;;WD)", "contains a key and is accessible by other users (" + everyone + ")", "", "contains a Sequence and is readable by other users (" + everyone + ")"},
		{"D:P(A;;FA;;;ME)(A;;FW;;;WD)", "contains a key and is accessible by other users (" + everyone + ")", "writable by other users (" + everyone + ")", ""},
		{"D:P(A;;FA;;;ME)(A;;FA;;;WD)", "accessible by", "writable by", "readable by"},
	} {
		grant(t, path, strings.ReplaceAll(test.acl, "ME", me.User.Sid.String()))
		_, key := Read(path)
		for what, check := range map[string]struct {
			err  error
			want string
		}{
			"Read":         {key, test.key},
			"CheckOwner":   {CheckOwner(path, nil), test.owner},
			"CheckReaders": {CheckReaders(path, nil, "a Sequence"), test.readers},
		} {
			if (check.err == nil) != (check.want == "") || check.err != nil && !strings.Contains(check.err.Error(), check.want) {
				t.Errorf("%s (now %s): %s returns %v, want %q", test.acl, acl(t, path), what, check.err, check.want)
			}
		}
	}
	_, err = Read(path)
	want := `; run icacls "` + path + `" /inheritance:r /grant:r "` + account(me.User.Sid) + `:F" /remove "` + everyone + `"`
	if err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want an error that ends with %s", err, want)
	}
}

// TestNewFilesArePrivate: a new file does not get the entries of its folder.
func TestNewFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	grant(t, dir, "D:P(A;OICI;FA;;;WD)")
	file := filepath.Join(dir, "file")
	for what, write := range map[string]func() error{
		"Create":            func() error { return Create(file, []byte("text")) },
		"Replace":           func() error { return Replace(file, []byte("text"), nil) },
		"Replace like file": func() error { return Replace(file, []byte("text"), mustStat(t, dir)) },
	} {
		os.Remove(file)
		if err := write(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := Read(file); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if got := acl(t, file); strings.Contains(got, "WD") {
			t.Errorf("%s: everyone has access: %s", what, got)
		}
	}
}

func mustStat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
