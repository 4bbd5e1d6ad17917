package main

import (
	"os"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// thisMachine says where and when, with nothing that names the machine itself.
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

// kernelVersion leaves out what a distribution or a company adds.
func kernelVersion(release string) string {
	return regexp.MustCompile(`^[0-9]+(\.[0-9]+)*`).FindString(release)
}
