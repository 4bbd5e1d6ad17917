//go:build unix

package main

import "syscall"

// noFollow makes os.OpenFile fail if the path is a symbolic link.
const noFollow = syscall.O_NOFOLLOW
