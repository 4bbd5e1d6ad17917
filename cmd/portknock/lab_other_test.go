//go:build !linux

package main

func labMain()    {}
func manyAtOnce() {}
