package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ticksPerSecond is the unit of /proc/PID/stat: USER_HZ, 100 on every architecture that
// the programs are built for.
const ticksPerSecond = 100

// process is what /proc/PID/stat tells.
type process struct {
	parent int
	own    int64 // ticks
	reaped int64 // ticks of children that ended and were waited for
}

func readProcess(pid int) (process, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// The program's name, in parentheses, may hold anything.
	_, rest, ok := strings.Cut(string(raw[max(0, bytes.LastIndexByte(raw, ')')):]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 15 {
		return process{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	n := func(i int) int64 {
		v, _ := strconv.ParseInt(f[i], 10, 64)
		return v
	}
	return process{parent: int(n(1)), own: n(11) + n(12), reaped: n(13) + n(14)}, nil
}

// cpuSeconds is the time that a process and all its descendants, ended ones included,
// have used.
func cpuSeconds(root int) (float64, error) {
	for range 10 {
		before, err := readProcess(root)
		if err != nil {
			return 0, err
		}
		children := descendants(root)
		after, err := readProcess(root)
		if err != nil {
			return 0, err
		}
		// A child that is reaped meanwhile would be counted twice or not at all.
		if after.reaped == before.reaped {
			return float64(after.own+after.reaped+children) / ticksPerSecond, nil
		}
	}
	return 0, fmt.Errorf("the children of process %d change too fast to be counted", root)
}

// descendants sums up the time of everything below a process.
func descendants(root int) (ticks int64) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	all := map[int]process{}
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if p, err := readProcess(pid); err == nil {
			all[pid] = p
		}
	}
	for pid, p := range all {
		if pid != root && below(all, pid, root) {
			ticks += p.own + p.reaped
		}
	}
	return ticks
}

func below(all map[int]process, pid, root int) bool {
	for range 64 { // a bound: the snapshot is not taken at one moment
		if pid == root {
			return true
		}
		p, ok := all[pid]
		if !ok {
			return false
		}
		pid = p.parent
	}
	return false
}

// meter reads the processor time of several processes by name.
type meter map[string]int // name → process

func (m meter) read() (map[string]float64, error) {
	out := map[string]float64{}
	for name, pid := range m {
		s, err := cpuSeconds(pid)
		if err != nil {
			return nil, fmt.Errorf("processor time of %s: %w", name, err)
		}
		out[name] = s
	}
	return out, nil
}

// since returns what was used after an earlier reading.
func (m meter) since(before map[string]float64) (map[string]float64, error) {
	now, err := m.read()
	for name := range now {
		now[name] -= before[name]
	}
	return now, err
}

// peakKB is the most memory, in kB, that a process has had resident.
func peakKB(pid int) (float64, error) {
	v, unit, ok := strings.Cut(fileField(fmt.Sprintf("/proc/%d/status", pid), "VmHWM", ":"), " ")
	n, err := strconv.ParseFloat(v, 64)
	if !ok || unit != "kB" || err != nil {
		return 0, fmt.Errorf("/proc/%d/status has no VmHWM", pid)
	}
	return n, nil
}
