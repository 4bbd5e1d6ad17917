package secret

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// The rules for files are those of Win32-OpenSSH: the user, SYSTEM and the group of the
// administrators may own a file and have access to it, and any other account must not.

const (
	readRights  = windows.FILE_READ_DATA | windows.GENERIC_READ | windows.GENERIC_ALL
	writeRights = windows.FILE_WRITE_DATA | windows.FILE_APPEND_DATA | windows.WRITE_DAC | windows.WRITE_OWNER |
		windows.GENERIC_WRITE | windows.GENERIC_ALL
	allRights = ^windows.ACCESS_MASK(0)
)

// CheckOwner returns an error for a file that another user, except SYSTEM and the
// administrators, owns or can write.
func CheckOwner(path string, _ fs.FileInfo) error {
	return checkAccess(path, writeRights, "writable")
}

// CheckReaders returns an error for a file that other users can read. The parameter what
// names the content of the file in the error, such as "a key".
func CheckReaders(path string, _ fs.FileInfo, what string) error {
	return checkAccess(path, readRights, "contains "+what+" and is readable")
}

// checkKey returns an error for a file that ssh would not accept as a private key.
func checkKey(path string, _ fs.FileInfo) error {
	return checkAccess(path, allRights, "contains a key and is accessible")
}

// checkAccess returns an error for a file that another user owns, or to which another user
// has one of the rights. In the error, the text what, such as "writable", stands before "by
// other users".
func checkAccess(path string, rights windows.ACCESS_MASK, what string) error {
	me, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return err
	}
	trusted := func(sid *windows.SID) bool {
		return sid.Equals(me.User.Sid) || sid.IsWellKnown(windows.WinLocalSystemSid) || sid.IsWellKnown(windows.WinBuiltinAdministratorsSid)
	}
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return &fs.PathError{Op: "GetNamedSecurityInfo", Path: path, Err: err}
	}
	if owner, _, err := sd.Owner(); err != nil || !trusted(owner) {
		return fmt.Errorf("%s: owned by %s, not by you or an administrator; use a file of your own", path, account(owner))
	}
	dacl, _, err := sd.DACL()
	if err != nil || dacl == nil {
		return fmt.Errorf("%s: %s by other users, because the file has no access control list; use a file on an NTFS drive", path, what)
	}
	for i := range uint32(dacl.AceCount) {
		var ace *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(dacl, i, &ace); err != nil {
			return &fs.PathError{Op: "GetAce", Path: path, Err: err}
		}
		sid := (*windows.SID)(unsafe.Pointer(&ace.SidStart))
		if ace.Header.AceType != windows.ACCESS_DENIED_ACE_TYPE && ace.Mask&rights != 0 && !trusted(sid) {
			return fmt.Errorf(`%s: %s by other users (%s); run icacls "%[1]s" /inheritance:r /grant:r "%[4]s:F" /remove "%[3]s"`,
				path, what, account(sid), account(me.User.Sid))
		}
	}
	return nil
}

// account returns the name of an account as icacls reads it.
func account(sid *windows.SID) string {
	name, domain, _, err := sid.LookupAccount("")
	switch {
	case err != nil:
		return "*" + sid.String()
	case domain != "":
		return domain + `\` + name
	}
	return name
}

// createPrivate creates a file to which only the user, SYSTEM and the administrators have
// access, whatever the folder allows. The file must not exist.
func createPrivate(path string) (*os.File, error) {
	handle, err := func() (windows.Handle, error) {
		me, err := windows.GetCurrentProcessToken().GetTokenUser()
		if err != nil {
			return 0, err
		}
		sd, err := windows.SecurityDescriptorFromString("D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;" + me.User.Sid.String() + ")")
		if err != nil {
			return 0, err
		}
		name, err := windows.UTF16PtrFromString(path)
		if err != nil {
			return 0, err
		}
		security := windows.SecurityAttributes{SecurityDescriptor: sd}
		security.Length = uint32(unsafe.Sizeof(security))
		return windows.CreateFile(name, windows.GENERIC_WRITE, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE,
			&security, windows.CREATE_NEW, windows.FILE_ATTRIBUTE_NORMAL, 0)
	}()
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(handle), path), nil
}

// renamePatience is how long rename waits for a program that has the file open. Most
// programs read a file at once and close it.
const renamePatience = time.Second

// rename is [os.Rename]. Windows does not replace a file while a program has it open.
func rename(from, to string) error {
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		err := os.Rename(from, to)
		busy := errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_SHARING_VIOLATION)
		if !busy || time.Since(began) > renamePatience {
			return err
		}
	}
}

// setOwner does nothing, because createPrivate has set who has access to the file.
func setOwner(*os.File, fs.FileInfo) error { return nil }

const nonBlocking = 0
