package oci

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// cgroups is how this machine's hierarchies are mounted. One code path serves both
// layouts: a controller's directory is found, then files are named by version.
type cgroups struct {
	roots  []string          // every hierarchy's mount point, of both versions
	v2     string            // mount point of version 2 if it has cpu and memory, else ""
	byName map[string]string // version 1: controller → mount point
}

func findCgroups() (cgroups, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, errs.New(errs.Internal, "find the cgroup mounts: %w", err)
	}
	defer f.Close()
	return parseCgroups(f, func(path string) string {
		raw, err := os.ReadFile(path)
		if err != nil {
			return "" // no such hierarchy: it has no controllers
		}
		return string(raw)
	})
}

// parseCgroups reads mountinfo; read returns a file's content.
func parseCgroups(mountinfo io.Reader, read func(string) string) (cgroups, error) {
	c := cgroups{byName: map[string]string{}}
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		// 36 35 98:0 /root /mount/point options optional… - type source superoptions
		before, after, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 {
			continue
		}
		point := left[4]
		switch right[0] {
		case "cgroup2":
			c.roots = append(c.roots, point)
			names := strings.Fields(read(filepath.Join(point, "cgroup.controllers")))
			if slices.Contains(names, "cpu") && slices.Contains(names, "memory") {
				c.v2 = point
			}
		case "cgroup":
			c.roots = append(c.roots, point)
			for name := range strings.SplitSeq(right[2], ",") {
				c.byName[name] = point
			}
		}
	}
	if err := lines.Err(); err != nil {
		return c, errs.New(errs.Internal, "read the cgroup mounts: %w", err)
	}
	if c.v2 == "" && (c.byName["memory"] == "" || c.byName["cpu"] == "") {
		return c, errs.New(errs.Unavailable, "the cgroup controllers cpu and memory are not mounted").
			WithHint("mount the cgroup file system on /sys/fs/cgroup")
	}
	return c, nil
}

// paths returns a cgroup's directory in every hierarchy, existing or not.
func (c cgroups) paths(cgroup string) []string {
	var out []string
	for _, root := range c.roots {
		out = append(out, filepath.Join(root, cgroup))
	}
	return out
}

// file returns the path of a file by its names in both versions.
func (c cgroups) file(cgroup, controller, v1, v2 string) string {
	if c.v2 != "" {
		return filepath.Join(c.v2, cgroup, v2)
	}
	return filepath.Join(c.byName[controller], cgroup, v1)
}

// oomKills returns how often the kernel killed in this cgroup for want of memory.
func (c cgroups) oomKills(cgroup string) int64 {
	n, err := readKey(c.file(cgroup, "memory", "memory.oom_control", "memory.events"), "oom_kill")
	if err != nil {
		return 0 // the cgroup is gone: nothing can be learned from it
	}
	return n
}

func (c cgroups) usage(cgroup string) (u sandbox.Usage, err error) {
	var failed [4]error
	u.MemoryBytes, failed[0] = readNumber(c.file(cgroup, "memory", "memory.usage_in_bytes", "memory.current"))
	u.PeakMemoryBytes, failed[1] = readNumber(c.file(cgroup, "memory", "memory.max_usage_in_bytes", "memory.peak"))
	if failed[1] != nil && c.v2 != "" && failed[0] == nil {
		u.PeakMemoryBytes, failed[1] = u.MemoryBytes, nil // memory.peak is younger than version 2
	}
	statKey := "total_inactive_file"
	if c.v2 != "" {
		statKey = "inactive_file"
	}
	idle, err := readKey(c.file(cgroup, "memory", "memory.stat", "memory.stat"), statKey)
	failed[2] = err
	u.MemoryBytes = max(0, u.MemoryBytes-idle)
	u.CPUSeconds, failed[3] = c.cpuSeconds(cgroup)
	for _, err := range failed {
		if err != nil {
			return sandbox.Usage{}, err
		}
	}
	return u, nil
}

func (c cgroups) cpuSeconds(cgroup string) (float64, error) {
	if c.v2 != "" {
		us, err := readKey(filepath.Join(c.v2, cgroup, "cpu.stat"), "usage_usec")
		return float64(us) / 1e6, err
	}
	ns, err := readNumber(filepath.Join(c.byName["cpuacct"], cgroup, "cpuacct.usage"))
	return float64(ns) / 1e9, err
}

// resize gives a cgroup the limits that a runtime gives to one of that size.
func (c cgroups) resize(cgroup string, size core.MemberSize) error {
	quota, period := cpuQuota(size)
	cpu := strconv.FormatInt(quota, 10)
	if c.v2 != "" {
		cpu += " " + strconv.FormatUint(period, 10) // swap stays denied
	}
	return errors.Join(c.setMemory(cgroup, memoryBytes(size)),
		write(c.file(cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max"), cpu))
}

func (c cgroups) setMemory(cgroup string, limit int64) error {
	text := strconv.FormatInt(limit, 10)
	memory := c.file(cgroup, "memory", "memory.limit_in_bytes", "memory.max")
	if c.v2 != "" {
		return write(memory, text)
	}
	// Memory and swap together may never be less than memory alone.
	both := filepath.Join(filepath.Dir(memory), "memory.memsw.limit_in_bytes")
	order := []string{both, memory}
	if now, err := readNumber(memory); err == nil && limit < now {
		slices.Reverse(order)
	}
	for _, path := range order {
		// Kernels without swap accounting lack the one for both.
		if err := write(path, text); err != nil && (path != both || !os.IsNotExist(err)) {
			return err
		}
	}
	return nil
}

// write never makes a file: what is not there the kernel lacks.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func readNumber(path string) (int64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
}

// readKey reads the number after a key in a file of "key number" lines.
func readKey(path, key string) (int64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			return strconv.ParseInt(v, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, key)
}

// kill kills every process of a cgroup and waits until none is left.
func (c cgroups) kill(ctx context.Context, cgroup string) error {
	c.thaw(cgroup)
	killed := map[int]bool{}
	for end := time.Now().Add(killTimeout); ; time.Sleep(3 * time.Millisecond) {
		pids := c.processes(cgroup)
		if len(pids) == 0 {
			reapKilled(killed)
			return nil
		}
		for _, pid := range pids {
			killed[pid] = true
			// ESRCH means that it went by itself.
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return errs.New(errs.Internal, "kill process %d of cgroup %s: %w", pid, cgroup, err)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return errs.New(errs.Timeout, "processes %v of cgroup %s do not die", pids, cgroup).
				WithHint("they wait in the kernel: see /proc/%d/stack", pids[0])
		}
	}
}

// thaw lets frozen processes die: a runtime that was killed while it froze a sandbox
// leaves it so.
func (c cgroups) thaw(cgroup string) {
	if root := c.byName["freezer"]; root != "" {
		// Absent, it is not frozen.
		os.WriteFile(filepath.Join(root, cgroup, "freezer.state"), []byte("THAWED"), 0o600) //nolint:errcheck // see above
	}
	if c.v2 != "" {
		os.WriteFile(filepath.Join(c.v2, cgroup, "cgroup.freeze"), []byte("0"), 0o600) //nolint:errcheck // see above
	}
}

// processes lists the members of a cgroup and of those below it, in every hierarchy: a
// runtime that is killed may have joined some hierarchies and not others.
func (c cgroups) processes(cgroup string) []int {
	var pids []int
	for _, dir := range c.tree(cgroup) {
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(raw)) {
			// 0 stands for a process that this PID namespace does not see.
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// tree lists a cgroup's directories and those below, parents first.
func (c cgroups) tree(cgroup string) []string {
	var dirs []string
	for _, top := range c.paths(cgroup) {
		// A directory that goes away meanwhile is no error.
		filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // see above
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	return dirs
}

// remove removes a cgroup and those below it from every hierarchy. A cgroup stays busy
// for a moment after its last process.
func (c cgroups) remove(ctx context.Context, cgroup string) error {
	for end := time.Now().Add(killTimeout); ; time.Sleep(3 * time.Millisecond) {
		left := c.tree(cgroup)
		if len(left) == 0 {
			return nil
		}
		var last error
		for _, dir := range slices.Backward(left) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				last = fmt.Errorf("remove %s: %w", dir, err)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if last != nil && time.Now().After(end) {
			return errs.New(errs.Internal, "cgroup %s can't be removed: %w", cgroup, last).
				WithHint("processes may have been moved into it: see its cgroup.procs")
		}
	}
}
