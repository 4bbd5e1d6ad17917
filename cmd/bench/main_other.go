//go:build !linux

package main

import (
	"context"
	"errors"
)

func runLabHost() {}

func measure(context.Context, *options) (*Report, error) {
	return nil, errors.New("Linux is required, for network namespaces")
}
