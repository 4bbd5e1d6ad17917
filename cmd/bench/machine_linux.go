package main

import (
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// thisMachine describes this machine, and the date. The description does not contain the
// name of the machine.
func thisMachine() Machine {
	m := Machine{Date: time.Now().UTC().Format(time.DateOnly), CPU: "unknown CPU", Cores: runtime.NumCPU(), Go: runtime.Version()}
	text, _ := os.ReadFile("/proc/cpuinfo")
	if model := regexp.MustCompile(`(?m)^(?:model name|Processor)\s*:\s*(.*)$`).FindSubmatch(text); model != nil {
		m.CPU = strings.TrimSpace(string(model[1]))
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = kernelVersion(unix.ByteSliceToString(name.Release[:]))
	}
	return m
}

// kernelVersion returns the release without the suffix of a distribution or a company.
func kernelVersion(release string) string {
	return regexp.MustCompile(`^[0-9]+(\.[0-9]+)*`).FindString(release)
}
