package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// intruderReport is what test/e2e/intruder writes.
type intruderReport struct {
	UID, GID, PID, CPUs    int
	Args, Env              []string
	Status, Mounts, UIDMap string
	Root, Dev, Processes   []string
	Links, Boot            []string
	Tries, Uplink          map[string]string
	Confined               map[string]string
}

// buildIntruder compiles the program that takes a member's place.
func buildIntruder(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "intruder")
	cmd := exec.Command("go", "build", "-o", path, "./intruder")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the intruder: %v\n%s", err, out)
	}
	return path
}

// TestConfinementFromInside has the real host run another program in a member's place,
// which tries what a member that was taken over would try.
func TestConfinementFromInside(t *testing.T) {
	busy.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Up("--gateway-program", buildIntruder(t))
	c.applyExample()
	r := c.intrude(t)

	if r.UID != 65532 || r.GID != 65532 || r.PID != 1 {
		t.Errorf("it runs as user %d, group %d, process %d", r.UID, r.GID, r.PID)
	}
	for line := range strings.Lines(r.UIDMap) {
		if w := strings.Fields(line); len(w) != 3 || w[1] == "0" || w[2] != "1" {
			t.Errorf("its user namespace maps %q", line)
		}
	}
	checkPrivileges(t, r.Status)
	checkTries(t, "as it comes", r.Tries, 50)
	checkTries(t, "confined as a member", r.Confined, 28)
	slices.Sort(r.Root)
	if diff := cmp.Diff([]string{"dev", "etc", "proc", "sluice-gateway"}, r.Root); diff != "" {
		t.Errorf("its root directory (-want +got):\n%s", diff)
	}
	if !slices.Equal(r.Processes, []string{"1"}) {
		t.Errorf("it sees processes %v", r.Processes)
	}
	slices.Sort(r.Links)
	if !slices.Equal(r.Links, []string{"eth0", "lo", "tun0"}) {
		t.Errorf("it has interfaces %v", r.Links)
	}
	if len(r.Args) != 1 {
		t.Errorf("its arguments are %q", r.Args)
	}
	checkEnvironment(t, r.Env, r.CPUs)
	checkMounts(t, r.Mounts)
	if !slices.Contains(r.Boot, "joinToken") || slices.ContainsFunc(r.Boot, func(s string) bool { return strings.Contains(strings.ToLower(s), "password") }) {
		t.Errorf("its boot document has %v", r.Boot)
	}
	begun := time.Now() // whoever waited for the wake has gone, so nothing holds up the end
	c.Stop("up", syscall.SIGTERM)
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("sluice up took %v to end", took)
	}
}

// checkTries wants everything to have failed but the controls, which show that it could be
// tried at all.
func checkTries(t *testing.T, how string, tries map[string]string, least int) {
	t.Helper()
	for what, err := range tries {
		if control := strings.HasPrefix(what, "control: "); (err == "") != control {
			t.Errorf("%s: %s: %q", how, what, err)
		}
	}
	if len(tries) < least {
		t.Errorf("%s: only %d things were tried", how, len(tries))
	}
}

// intrude wakes the gateway, which can't succeed, and returns what the intruder wrote.
func (c *corp) intrude(t *testing.T) intruderReport {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	woken := make(chan struct{})
	api := c.Client()
	go func() {
		defer close(woken)
		_ = api.Gateway(ctx, "wake", gateway) // an intruder never dials back
	}()
	defer func() { cancel(); <-woken }()
	var r intruderReport
	eventually(t, 60*time.Second, "the intruder reports", func() bool {
		for _, f := range c.memberLogs() {
			text, _ := os.ReadFile(f)
			for line := range bytes.Lines(text) {
				if bytes.HasSuffix(line, []byte("\n")) && json.Unmarshal(line, &r) == nil && r.PID != 0 {
					return true
				}
			}
		}
		return false
	})
	return r
}

func (c *corp) memberLogs() []string {
	files, _ := filepath.Glob(c.Run + "/members/bundles/*/log")
	return files
}

// checkPrivileges reads /proc/PID/status.
func checkPrivileges(t *testing.T, status string) {
	t.Helper()
	seen := 0
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			seen++
			if strings.Trim(value, "0") != "" {
				t.Errorf("%s is %s, want no capability", key, value)
			}
		case "NoNewPrivs":
			seen++
			if value != "1" {
				t.Errorf("NoNewPrivs is %s", value)
			}
		case "Groups":
			if value != "" && value != "65532" {
				t.Errorf("it is in the groups %s", value)
			}
		}
	}
	if seen != 6 {
		t.Errorf("only %d of the lines looked for are in %q", seen, status)
	}
}

func checkEnvironment(t *testing.T, env []string, cpus int) {
	t.Helper()
	allowed := []string{"GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK", "SSL_CERT_FILE", "HOME", "PATH"}
	for _, e := range env {
		key, value, _ := strings.Cut(e, "=")
		if !slices.Contains(allowed, key) {
			t.Errorf("its environment has %s", key)
		}
		if key == "GOMEMLIMIT" {
			if n, err := strconv.ParseInt(value, 10, 64); err != nil || n <= 0 || n >= 8<<30 {
				t.Errorf("GOMEMLIMIT is %s, want it below 8 GiB", value)
			}
		}
	}
	if cpus > 2 {
		t.Errorf("it uses %d CPUs", cpus)
	}
}

// devices are what every OCI runtime puts into a container, each bound alone.
var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}

// checkMounts checks that no file system of files is writable.
func checkMounts(t *testing.T, mounts string) {
	t.Helper()
	root := false
	for line := range strings.Lines(mounts) {
		w := strings.Fields(line)
		if len(w) < 4 {
			continue
		}
		options := strings.Split(w[3], ",")
		root = root || w[1] == "/"
		harmless := w[2] == "proc" || slices.Contains(devices, w[1]) || strings.HasPrefix(w[1], "/proc/")
		if !slices.Contains(options, "ro") && !harmless {
			t.Errorf("mounted and not read-only: %s", line)
		}
		if strings.HasPrefix(w[1], "/sys") {
			t.Errorf("it sees %s", line)
		}
	}
	if !root {
		t.Errorf("no mount of / in %q", mounts)
	}
}

// TestConfinementOfTheRealMember looks at a member that works, from outside.
func TestConfinementOfTheRealMember(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	c.value("select 1")
	m := onlyMember(t, c.Client())
	pid := c.pidOf(t, m)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	checkPrivileges(t, string(status))
	for _, line := range []string{"Seccomp:\t2\n", "NSpid:\t" + strconv.Itoa(pid) + "\t1\n"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("its status lacks %q:\n%s", line, status)
		}
	}
	if strings.Contains(string(status), "\nUid:\t0\t") {
		t.Error("it runs as root of the machine")
	}
	for _, kind := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		ours, _ := os.Readlink("/proc/self/ns/" + kind)
		if err != nil || theirs == ours {
			t.Errorf("its %s namespace is %s, that of the machine (%v)", kind, theirs, err)
		}
	}
	// Landlock shows nowhere from outside but in what the member says of itself.
	var log []byte
	for _, f := range c.memberLogs() {
		log, _ = os.ReadFile(f)
	}
	var said struct {
		Layers struct {
			LandlockABI int
			Seccomp     bool
		}
	}
	line, _, _ := bytes.Cut(log, []byte("\n"))
	if err := json.Unmarshal(line, &said); err != nil || !said.Layers.Seccomp {
		t.Errorf("the first line of its log does not say that it is confined: %s", line)
	}
	if _, err := os.Stat("/sys/kernel/security/landlock"); err == nil && said.Layers.LandlockABI == 0 {
		t.Errorf("this kernel has Landlock, but the member does not use it: %s", line)
	}
	c.checkLimits(t, pid, 2, 8<<30)
}

// checkLimits reads the limits of a process's cgroup, of either version.
func (c *corp) checkLimits(t *testing.T, pid, cpus int, memory int64) {
	t.Helper()
	read := func(names ...string) string {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		for line := range strings.Lines(string(text)) {
			w := strings.SplitN(strings.TrimSpace(line), ":", 3)
			for _, name := range names {
				for _, dir := range []string{"/sys/fs/cgroup/" + w[1], "/sys/fs/cgroup"} {
					if v, err := os.ReadFile(dir + w[2] + "/" + name); err == nil {
						return strings.TrimSpace(string(v))
					}
				}
			}
		}
		return ""
	}
	if got := read("memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(memory) {
		t.Errorf("its memory limit is %q, want %d", got, memory)
	}
	quota, err := strconv.ParseFloat(strings.Fields(read("cpu.cfs_quota_us", "cpu.max") + " x")[0], 64)
	if err != nil || quota > float64(cpus)*100_000 || quota <= 0 {
		t.Errorf("its CPU quota is %v in 100 ms, want at most that of %d CPUs (%v)", quota, cpus, err)
	}
	if got := read("pids.max"); got == "max" || got == "" {
		t.Errorf("its number of threads has no limit: %q", got)
	}
}

// TestOutOfMemoryIsSaid has a member take more memory than its gateway's size allows: the
// command that waited for it says so, with the limit.
func TestOutOfMemoryIsSaid(t *testing.T) {
	busy.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	up := c.Up("--gateway-program", buildIntruder(t))
	c.rewrite("gateway.yaml", "autoPause: 30m", "autoPause: 30m\nsize: {memoryMiB: 64}")
	c.applyExample()
	wantFailure(t, c.query("select 1"), 1, "out of memory", "64 MiB")
	wantFailure(t, c.Sluice("gateway", "wake", gateway), 1, "out of memory", "64 MiB")
	if !strings.Contains(up.Log.String(), "out of memory: the limit is 64 MiB") {
		t.Error("the log does not say it")
	}
	eventually(t, 60*time.Second, "nothing is left of the members", func() bool {
		return len(c.containers()) == 0 && len(c.spaces("m")) == 0
	})
}

// TestOutOfMemoryInAQuery has a real member of the smallest size take a value that does
// not fit: the query fails, and the next one works.
func TestOutOfMemoryInAQuery(t *testing.T) {
	busy.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Up()
	c.rewrite("gateway.yaml", "autoPause: 30m", "autoPause: 30m\nsize: {memoryMiB: 64}")
	c.applyExample()
	if got := c.value("select 1"); got != "1" {
		t.Fatalf("a small member gives %q", got)
	}
	c.checkLimits(t, c.pidOf(t, onlyMember(t, c.Client())), 2, 64<<20)
	wantFailure(t, c.query("select repeat('x', 200000000)"), 1, "out of memory", "64 MiB")
	worksAgain(t, c.Client(), 60*time.Second)
}
