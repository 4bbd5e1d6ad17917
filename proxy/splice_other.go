//go:build !linux

package proxy

import (
	"context"
	"io"
	"net"
)

// spliceStream does nothing, because only Linux has splice(2).
func spliceStream(context.Context, io.Writer, io.Reader, func(int64)) (next step, readErr, writeErr error) {
	return copyAll, nil, nil
}

// limitQueue does nothing, because only Linux can change the size of a pipe.
func limitQueue(net.Conn, io.Reader) (moved func(int64)) { return func(int64) {} }

// limitUnsent does nothing: on other systems than Linux nobody has measured its effect.
func limitUnsent(fd, bytes int) {}

// isDead is only known on Linux.
func isDead(net.Conn) bool { return false }
