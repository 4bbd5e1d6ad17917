//go:build !linux

package proxy

// Only Linux can hold an ACK back.

func setHoldBack(uintptr, bool) {}

func releaseHoldBack(uintptr) {}
