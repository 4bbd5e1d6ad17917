//go:build !unix

package proxy

// awaitHangup returns at once, because this system does not report a hangup.
func awaitHangup(fd, stop int) bool { return false }
