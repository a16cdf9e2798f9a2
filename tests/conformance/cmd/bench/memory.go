package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// usage is the memory of some processes in kB.
type usage struct{ rss, pss, private int }

func (u *usage) add(other usage) {
	u.rss += other.rss
	u.pss += other.pss
	u.private += other.private
}

// memory is what a runtime uses besides its containers' own processes.
type memory struct {
	// The daemon before the pods, and beside them.
	idle, busy usage
	// All monitors or shims, and all pause processes.
	helpers, pauses usage
}

// ofProcess reads what a process uses. A process that is gone uses nothing.
func ofProcess(pid int) usage {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return usage{}
	}
	var u usage
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kb, _ := strconv.Atoi(fields[1])
		switch fields[0] {
		case "Rss:":
			u.rss = kb
		case "Pss:":
			u.pss = kb
		case "Private_Clean:", "Private_Dirty:":
			u.private += kb
		}
	}
	return u
}

func (t *target) daemonMemory() usage {
	var all usage
	for _, pid := range t.daemon {
		all.add(ofProcess(pid))
	}
	return all
}

// takeMemory measures the daemon, its helpers, and their pause processes.
func (t *target) takeMemory(pods int) error {
	t.memory.busy = t.daemonMemory()
	if t.helper == "" {
		return nil
	}
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	helpers := map[int]bool{}
	for _, entry := range entries {
		exe, _ := os.Readlink(entry + "/exe")
		command, _ := os.ReadFile(entry + "/cmdline")
		if filepath.Base(exe) == t.helper && bytes.Contains(command, []byte(t.mark)) {
			pid, _ := strconv.Atoi(filepath.Base(entry))
			helpers[pid] = true
			t.memory.helpers.add(ofProcess(pid))
		}
	}
	if len(helpers) != pods {
		return fmt.Errorf("%s: %d processes of %s for %d pods of one container", t.name, len(helpers), t.helper, pods)
	}
	for _, entry := range entries {
		stat, _ := os.ReadFile(entry + "/stat")
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		exe, _ := os.Readlink(entry + "/exe")
		if len(fields) < 2 || exe != "/pause" {
			continue
		}
		if parent, _ := strconv.Atoi(fields[1]); helpers[parent] {
			pid, _ := strconv.Atoi(filepath.Base(entry))
			t.memory.pauses.add(ofProcess(pid))
		}
	}
	return nil
}
