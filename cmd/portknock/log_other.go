//go:build !unix

package main

// noFollow makes os.OpenFile fail if the path is a symbolic link, on systems that can do it.
const noFollow = 0
