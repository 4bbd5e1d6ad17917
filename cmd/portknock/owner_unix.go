//go:build unix

package main

import (
	"io/fs"
	"os"
	"syscall"
)

// giveTo makes the owner and the group of another file those of a new one. They
// can differ: the file may be shared with a group, or be root's.
func giveTo(path string, like fs.FileInfo) error {
	want, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if got, ok := info.Sys().(*syscall.Stat_t); ok && got.Uid == want.Uid && got.Gid == want.Gid {
		return nil
	}
	return os.Chown(path, int(want.Uid), int(want.Gid))
}
