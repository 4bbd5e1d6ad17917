//go:build !unix

package main

import (
	"io/fs"
	"os"
)

// giveTo does nothing: a new file belongs to whom its folder says.
func giveTo(*os.File, fs.FileInfo) error { return nil }
