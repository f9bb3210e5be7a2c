package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// facts are what one must know of a machine to compare figures with those of another.
type facts struct {
	Kernel   string `json:"kernel"`
	System   string `json:"system"`
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	MemoryMB int64  `json:"memoryMB"`
	Go       string `json:"go"`
	Version  string `json:"version"` // of the source tree
	Runc     string `json:"runc"`
	Postgres string `json:"postgres"`
	SSH      string `json:"ssh"`
	TCP      string `json:"tcp"`        // the congestion control that new connections get
	Load     string `json:"loadBefore"` // before anything of this run was started
}

func machineFacts() facts {
	f := facts{
		Cores: runtime.NumCPU(), Go: runtime.Version(), Load: loadAverage(),
		System: fileField("/etc/os-release", "PRETTY_NAME", "="), CPU: fileField("/proc/cpuinfo", "model name", ":"),
		Version: said("git", "describe", "--tags", "--always", "--dirty"), Runc: said("runc", "--version"),
		Postgres: said("psql", "--version"), SSH: said("ssh", "-V"), TCP: fileField("/proc/sys/net/ipv4/tcp_congestion_control", "", ""),
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		f.MemoryMB = int64(info.Totalram) * int64(info.Unit) / 1e6
	}
	return f
}

// String implements fmt.Stringer.
func (f facts) String() string {
	return fmt.Sprintf("%s, Linux %s, %d cores (%s), %d MB, TCP %s, %s, %s, load before: %s",
		f.System, f.Kernel, f.Cores, f.CPU, f.MemoryMB, f.TCP, f.Go, f.Version, f.Load)
}

// said is the first line that a program prints.
func said(program string, args ...string) string {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// fileField returns the value of the first "key SEP value" line.
func fileField(path, key, sep string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(line, sep); ok && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return ""
}

// loadAverage is the kernel's, over 1, 5 and 15 minutes.
func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(raw))[:3], " ")
}
