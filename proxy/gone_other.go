//go:build !unix

package proxy

import (
	"context"
	"os"
)

// ReaderGone returns a channel that is never closed: on this system nothing
// tells that a pipe has lost its reader, before the next write does.
func ReaderGone(context.Context, *os.File) <-chan struct{} { return nil }
