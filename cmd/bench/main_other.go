//go:build !linux

package main

import (
	"context"
	"errors"
)

func enter() {}

func measure(context.Context, *options) (*Report, error) {
	return nil, errors.New("it takes Linux, for its network namespaces")
}
