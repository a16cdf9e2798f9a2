package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is what /proc counts processor time in; Linux has no other for programs.
const tick = 10 * time.Millisecond

// cpuTime is how long the processor has worked for a runtime so far.
func (t *target) cpuTime() time.Duration {
	var all time.Duration
	for _, file := range t.cpuFiles {
		all += ofCgroup(file)
	}
	if len(t.cpuFiles) > 0 {
		return all
	}
	for _, pid := range t.daemon {
		all += withChildren(pid)
	}
	return all
}

// ofCgroup reads cpuacct.usage (version 1) or cpu.stat (version 2).
func ofCgroup(file string) time.Duration {
	data, _ := os.ReadFile(file)
	fields := strings.Fields(string(data))
	if len(fields) == 1 {
		ns, _ := strconv.ParseInt(fields[0], 10, 64)
		return time.Duration(ns)
	}
	for n := 0; n+1 < len(fields); n += 2 {
		if fields[n] == "usage_usec" {
			us, _ := strconv.ParseInt(fields[n+1], 10, 64)
			return time.Duration(us) * time.Microsecond
		}
	}
	return 0
}

// withChildren is the time of a process, and of those that it, or they, waited for.
func withChildren(pid int) time.Duration {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	var all time.Duration
	// utime, stime, cutime, cstime.
	for n := 11; n < 15 && n < len(fields); n++ {
		ticks, _ := strconv.ParseInt(fields[n], 10, 64)
		all += time.Duration(ticks) * tick
	}
	return all
}
