//go:build !unix

package proxy

import (
	"errors"
	"net"
	"os"
	"runtime"
)

// CanPassFD returns an error, because this system cannot pass a descriptor.
func CanPassFD(*os.File) error {
	return errors.New(runtime.GOOS + " cannot pass a descriptor")
}

// PassFD closes conn and returns the error of [CanPassFD].
func PassFD(conn net.Conn, to *os.File) error {
	conn.Close()
	return CanPassFD(to)
}
