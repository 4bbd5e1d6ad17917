//go:build !linux

package main

// clockSynchronized does not know whether this computer's clock is right.
func clockSynchronized() clockState { return "" }
