//go:build !linux

package proxy

// Only Linux can hold back the last ACK of a handshake.

func setHoldBack(uintptr, bool) {}

func releaseHoldBack(uintptr) {}
