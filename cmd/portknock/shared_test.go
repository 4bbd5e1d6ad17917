package main

import (
	"io"
	"strings"
	"testing"
)

// TestEndlessInput: what is too large to be a profile file is not read to its end.
func TestEndlessInput(t *testing.T) {
	endless := &io.LimitedReader{R: newlines{}, N: 1 << 30}
	a := &app{stdin: endless, stdout: io.Discard}
	if err := a.main(t.Context(), []string{"profile", "list", "-c", "-"}); err == nil || !strings.Contains(err.Error(), "-: larger than") {
		t.Errorf("got %v", err)
	}
	if read := 1<<30 - endless.N; read > 8<<20 {
		t.Errorf("%d bytes were read", read)
	}
}

type newlines struct{}

func (newlines) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '\n'
	}
	return len(b), nil
}
