//go:build !unix

package proxy

const forRead, forWrite = 0, 0

// awaitReady returns false: files of this system do not become non-blocking.
func awaitReady(file any, err error, event int16) bool { return false }
