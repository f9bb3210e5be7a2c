package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// childOptions is set in a copy of the test binary that is to run a machine until it is killed.
const childOptions = "SLUICE_VM_CHILD"

func TestMain(m *testing.M) {
	if raw := os.Getenv(childOptions); raw != "" {
		runUntilKilled(raw)
	}
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	var err error
	if machine.dir, err = os.MkdirTemp("", "sluice-vm-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(machine.dir)
	return m.Run()
}

// machine is what all machines of these tests have in common, found and built once.
var machine struct {
	dir  string // for what is built
	once sync.Once
	opts Options
	err  error
}

// newMachine returns how to make a machine, or skips the test, with the reason.
func newMachine(t *testing.T, limit time.Duration) Options {
	t.Helper()
	switch {
	case testing.Short():
		t.Skip("boots a virtual machine")
	case runtime.GOARCH != "amd64":
		t.Skip("boots Debian's kernel for amd64, and this machine is " + runtime.GOARCH)
	case os.Geteuid() != 0:
		t.Skip("needs root: the guest's root has this machine's files")
	case os.Getenv("SLUICE_TEST_VM_ACCEL") == "none":
		t.Skip("SLUICE_TEST_VM_ACCEL=none: no virtual machine is wanted")
	}
	machine.once.Do(func() { machine.opts, machine.err = prepareMachine(t) })
	if machine.err != nil {
		t.Fatalf("no virtual machine: %v\nhint: make deps installs QEMU; SLUICE_TEST_VM_ACCEL=none leaves these tests out", machine.err)
	}
	o := machine.opts
	o.Dir, o.Limit, o.Output = t.TempDir(), limit, t.Output()
	return o
}

func prepareMachine(t *testing.T) (o Options, err error) {
	if _, err := exec.LookPath(program); err != nil {
		return o, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cache, err := os.UserCacheDir()
	if err != nil {
		return o, err
	}
	if o.Kernel, err = FindKernel(ctx, filepath.Join(cache, "sluice-test")); err != nil {
		return o, err
	}
	if o.Guest, err = BuildGuest(machine.dir); err != nil {
		return o, err
	}
	var why string
	o.Accel, why = Accel()
	if o.Accel == "kvm" {
		// A KVM that is virtual itself may open, and then run nothing.
		o.Dir, o.Limit, o.Output = t.TempDir(), time.Minute, io.Discard
		if _, err := Run(ctx, o, Job{Program: "/bin/true"}); err != nil {
			o.Accel, why = "tcg", err.Error()
		}
	}
	t.Logf("kernel %s, accelerator %s %s", o.Kernel.Version, o.Accel, why)
	return o, nil
}

// TestTheGuestIsADebianHost: its kernel, its cgroups, its files; and what the job said and how
// it ended comes back.
func TestTheGuestIsADebianHost(t *testing.T) {
	t.Parallel()
	o := newMachine(t, 3*time.Minute)
	var out bytes.Buffer
	o.Output = &out
	share := t.TempDir()
	if err := os.WriteFile(filepath.Join(share, "here"), []byte("shared"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := `uname -r; cat /proc/self/cgroup; cat /sys/fs/cgroup/system.slice/cgroup.controllers; cat here
echo; ls -d /sys/class/net/*; touch /etc/x /run/x /tmp/x && echo writable; ip link add v type dummy && echo module; echo $X; exit 3`
	status, err := Run(t.Context(), o, Job{Program: "/bin/sh", Args: []string{"-c", script}, Dir: Shared, Share: share, Env: []string{"X=environment"}})
	if err != nil || status != 3 {
		t.Fatalf("status %d, %v; want 3\n%s", status, err, out.String())
	}
	want := o.Kernel.Version + "\n0::/system.slice/job.service\nio memory pids\nshared\n/sys/class/net/lo\nwritable\nmodule\nenvironment\n"
	if diff := cmp.Diff(want, strings.Replace(out.String(), "cpu io", "io", 1)); diff != "" {
		t.Errorf("the job said (-want +got):\n%s", diff)
	}
	if _, err := os.Stat("/etc/x"); err == nil {
		t.Error("what the guest writes is on this machine")
	}
}

// TestNoStatus: whatever keeps a job from ending is an error that says so.
func TestNoStatus(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Options, *Job)
		want   []string
	}{
		"a panic":           {func(o *Options, _ *Job) { o.params = "rdinit=/none" }, []string{"it ended before the job did", "Kernel panic"}},
		"a hang":            {func(o *Options, _ *Job) { o.Limit = time.Second }, []string{"no end within 1s"}},
		"no such program":   {func(_ *Options, j *Job) { j.Program = "/none" }, []string{"could not start: /none", "no such file"}},
		"no such share":     {func(_ *Options, j *Job) { j.Share = "/none" }, []string{"could not start", "showing /none of the machine as /vm"}},
		"no such emulation": {func(o *Options, _ *Job) { o.Accel = "none" }, []string{"qemu-system-x86_64", "none"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, job := newMachine(t, 2*time.Minute), Job{Program: "/bin/sleep", Args: []string{"1000"}}
			c.change(&o, &job)
			_, err := Run(t.Context(), o, job)
			for _, want := range append(c.want, "kernel "+o.Kernel.Version, "the console's end") {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v; want %q in it", err, want)
				}
			}
			if left := machines(o.Dir); len(left) > 0 {
				t.Errorf("QEMU runs still: %v", left)
			}
		})
	}
}

// machines lists the processes of QEMU with a folder among their arguments.
func machines(dir string) (out []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && bytes.HasPrefix(line, []byte(program)) && bytes.Contains(line, []byte(dir)) {
			out = append(out, path)
		}
	}
	return out
}

// TestTheMachineEndsWithTheTest: with a test binary that is killed, too.
func TestTheMachineEndsWithTheTest(t *testing.T) {
	t.Parallel()
	o := newMachine(t, time.Hour)
	o.Output = nil
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childOptions+"="+string(raw))
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "QEMU runs", func() bool { return len(machines(o.Dir)) == 1 })
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	await(t, "QEMU has ended", func() bool { return len(machines(o.Dir)) == 0 })
}

func runUntilKilled(raw string) {
	var o Options
	if err := json.Unmarshal([]byte(raw), &o); err != nil {
		panic(err)
	}
	o.Output = io.Discard
	status, err := Run(context.Background(), o, Job{Program: "/bin/sleep", Args: []string{"100000"}})
	fmt.Println(status, err)
	os.Exit(1)
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestModulesComeInAnOrderToLoadThemIn(t *testing.T) {
	t.Parallel()
	k := Kernel{Version: "6.1.0-0", Modules: t.TempDir()}
	list := "kernel/a/ninep.ko: kernel/b/net-p.ko.xz kernel/c/base.ko\nkernel/b/net-p.ko.xz: kernel/c/base.ko\nkernel/c/base.ko:\n"
	if err := os.MkdirAll(filepath.Dir(k.list()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.list(), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := k.modules([]string{"net_p", "ninep"})
	at := filepath.Join(k.Modules, k.Version, "kernel")
	if diff := cmp.Diff([]string{at + "/c/base.ko", at + "/b/net-p.ko.xz", at + "/a/ninep.ko"}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if _, err := k.modules([]string{"net_p", "vlan"}); err == nil || err.Error() != "kernel 6.1.0-0 has no module vlan" {
		t.Errorf("a missing module: %v", err)
	}
}
