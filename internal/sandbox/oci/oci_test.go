package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
	"github.com/sluice-gateway/sluice/internal/sandbox/sandboxtest"
)

func tContext() context.Context { return context.Background() }

// leftovers finds whatever on the machine names this installation.
func (i *installation) leftovers() (left []string) {
	if _, err := os.Lstat(i.opts.Dir); err == nil {
		left = append(left, i.opts.Dir)
	}
	cgroupMounts, _ := filepath.Glob("/sys/fs/cgroup/*/sluice-" + i.opts.Instance)
	top, _ := filepath.Glob("/sys/fs/cgroup/sluice-" + i.opts.Instance)
	left = append(append(left, cgroupMounts...), top...)
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if bytes.Contains(mounts, []byte(i.opts.Dir)) {
		left = append(left, "a mount")
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if pid, _ := strconv.Atoi(filepath.Base(p)); isZombie(pid) {
			continue // its parent, outside of this installation, has yet to reap it
		}
		for _, file := range []string{"cmdline", "environ", "cgroup"} {
			raw, _ := os.ReadFile(filepath.Join(p, file))
			if p != "/proc/"+strconv.Itoa(os.Getpid()) && bytes.Contains(raw, []byte("sluice-"+i.opts.Instance)) {
				left = append(left, p+"/"+file)
			}
		}
	}
	return left
}

func isZombie(pid int) bool {
	stat, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return bytes.Contains(stat, []byte(") Z "))
}

func spec(t testing.TB, id string, c sandboxtest.Command) sandbox.Spec {
	t.Helper()
	return sandboxtest.Harness{NetNS: sandboxtest.NetNS(t)}.Spec(id, c)
}

func TestConfinement(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	r := i.manager(t)
	s := spec(t, "m-1-7", sandboxtest.Command{Do: "report"})
	s.Size.CPUs = 1.5
	sandboxtest.MustStart(t, r, s)
	sandboxtest.WaitExit(t, r, s.ID)
	f := readFacts(t, r, s.ID)

	if f.UID != memberID || f.GID != memberID || len(f.Groups) != 0 || f.PID != 1 || f.CPUs != 2 {
		t.Errorf("uid %d, gid %d, groups %v, pid %d, CPUs %d", f.UID, f.GID, f.Groups, f.PID, f.CPUs)
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if v := f.Status[set]; v != "0000000000000000" {
			t.Errorf("%s = %s", set, v)
		}
	}
	if f.Status["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs = %s", f.Status["NoNewPrivs"])
	}
	if diff := cmp.Diff([]string{"dev", "etc", "proc", "sluice-gateway"}, f.Root); diff != "" {
		t.Errorf("the root holds (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]uint64{"nofile": 4096, "core": 0, "fsize": hardLog}, f.Limits); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	wantEnv := []string{"GOMAXPROCS=2", "GOMEMLIMIT=" + strconv.Itoa(64<<20/10*8), "GOTRACEBACK=single", "SSL_CERT_FILE=" + caPath, "HOME=/"}
	if diff := cmp.Diff(wantEnv, f.Env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if len(f.Args) != 1 || f.Hostname != "member" || !slices.Equal(f.Interfaces, []string{"lo"}) {
		t.Errorf("args %q, host name %q, interfaces %q", f.Args, f.Hostname, f.Interfaces)
	}
	if want := idMappings(s.ID); !strings.Contains(strings.Join(strings.Fields(f.UIDMap), " "), "65532 "+strconv.Itoa(int(want[1].HostID))+" 1") {
		t.Errorf("user map %q, want %v", f.UIDMap, want)
	}
	for what, refused := range f.Tries {
		if works := what == "read the CA certificates"; works != (refused == "") {
			t.Errorf("%s: %q", what, refused)
		}
	}
	for _, m := range f.Mounts {
		point, options, _ := strings.Cut(m, " ")
		if (point == "/" || point == "/dev") && !slices.Contains(strings.Split(options, ","), "ro") {
			t.Errorf("%s is mounted %s", point, options)
		}
	}
}

func readFacts(t *testing.T, r *Runtime, id string) (f sandboxtest.Facts) {
	t.Helper()
	raw, err := os.ReadFile(r.bundle(id).log())
	if err != nil {
		t.Fatal(err)
	}
	_, report, _ := bytes.Cut(raw, []byte("\n"))
	if err := json.Unmarshal(report, &f); err != nil {
		t.Fatalf("%v in %q", err, raw)
	}
	return f
}

// TestConfinesItself: what a member does first works inside the sandbox, as process 1 of
// an unprivileged user.
func TestConfinesItself(t *testing.T) {
	t.Parallel()
	r := newInstallation(t).manager(t)
	s := spec(t, "m-1-7", sandboxtest.Command{Do: "confine"})
	sandboxtest.MustStart(t, r, s)
	st := sandboxtest.WaitExit(t, r, s.ID)
	if st.Exit.Code != 0 || !strings.Contains(st.Exit.LogTail, "confined: true true") {
		t.Errorf("exit = %+v", st.Exit)
	}
}

// TestBootStaysOffDisk holds promise 3 for the sandbox.
func TestBootStaysOffDisk(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	r := i.manager(t)
	const secret = "s3cr3t-join-token"
	s := spec(t, "m-1-7", sandboxtest.Command{Do: "sleep", Padding: secret})
	sandboxtest.MustStart(t, r, s)
	st, _ := sandboxtest.Get(t, r, s.ID)
	waitLog(t, r, s.ID, sandboxtest.BootLine(s.Boot))
	look := func(path string) {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		if bytes.Contains(raw, []byte(secret)) {
			t.Errorf("%s holds the boot data", path)
		}
	}
	look("/proc/" + strconv.Itoa(st.PID) + "/environ")
	look("/proc/" + strconv.Itoa(st.PID) + "/cmdline")
	err := filepath.WalkDir(i.opts.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			look(path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func waitLog(t *testing.T, r *Runtime, id, text string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(r.bundle(id).logTail(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log lacks %q: %q", text, r.bundle(id).logTail())
		}
	}
}

func TestKilledFromOutside(t *testing.T) {
	t.Parallel()
	r := newInstallation(t).manager(t)
	s := spec(t, "m-1-7", sandboxtest.Command{Do: "sleep"})
	sandboxtest.MustStart(t, r, s)
	st, _ := sandboxtest.Get(t, r, s.ID)
	if err := unix.Kill(st.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit := sandboxtest.WaitExit(t, r, s.ID).Exit
	if exit.OutOfMemory || exit.Code != 137 || exit.Reason != "killed by signal 9 (SIGKILL)" {
		t.Errorf("exit = %+v", exit)
	}
}

// TestStopAtOnce: a member that is stopped while it boots has no handler for SIGTERM yet,
// and must not take the whole grace for that.
func TestStopAtOnce(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	i.opts.Grace = time.Minute
	r := i.manager(t)
	began := time.Now()
	for range 5 {
		sandboxtest.MustStart(t, r, spec(t, "m-1-7", sandboxtest.Command{Do: "sleep"}))
		sandboxtest.MustStop(t, r, "m-1-7")
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("five starts and stops took %v", took)
	}
}

func TestLimitsAreSet(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	r := i.manager(t)
	s := spec(t, "m-1-7", sandboxtest.Command{Do: "spin"})
	sandboxtest.MustStart(t, r, s)
	began := time.Now()
	u0, err := r.Usage(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	u1, err := r.Usage(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	// Four busy goroutines under a quota of half a CPU.
	if used := (u1.CPUSeconds - u0.CPUSeconds) / time.Since(began).Seconds(); used > 0.65 {
		t.Errorf("it used %.2f CPUs of 0.5", used)
	}
	cg, err := findCgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		controller, v1, v2 string
		want               int64
	}{
		{"memory", "memory.limit_in_bytes", "memory.max", 64 << 20},
		{"memory", "memory.memsw.limit_in_bytes", "memory.max", 64 << 20},
		{"pids", "pids.max", "pids.max", maxPIDs},
	} {
		if got, err := readNumber(cg.file(r.cgroup(s.ID), f.controller, f.v1, f.v2)); err != nil || got != f.want {
			t.Errorf("%s = %d, want %d (%v)", f.v1, got, f.want, err)
		}
	}
}

// TestLogIsBounded holds that a member which writes without end fills no disk and lives.
func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	r := newInstallation(t).manager(t)
	s := spec(t, "m-1-7", sandboxtest.Command{Do: "spam", MiB: 40})
	sandboxtest.MustStart(t, r, s)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		fi, err := os.Stat(r.bundle(s.ID).log())
		if err != nil || fi.Size() > hardLog {
			t.Fatalf("the log: %v, %v", fi, err)
		}
		if fi.Size() == hardLog {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the log stays at %d bytes", fi.Size())
		}
	}
	if st, _ := sandboxtest.Get(t, r, s.ID); !st.Running {
		t.Errorf("the member did not live: %+v", st.Exit)
	}
	if fi, err := os.Stat(r.bundle(s.ID).log()); err != nil || fi.Size() > maxLog {
		t.Errorf("the log was not trimmed: %v, %v", fi, err)
	}
}

func TestRootFSVersions(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	program := filepath.Join(t.TempDir(), "gateway")
	copyTo(t, payload, program, "")
	i.opts.Program = program
	r := i.manager(t)
	first, second := spec(t, "m-1-7", sandboxtest.Command{Do: "sleep"}), spec(t, "m-2-7", sandboxtest.Command{Do: "sleep"})
	sandboxtest.MustStart(t, r, first)
	if v := versions(t, i); len(v) != 1 {
		t.Fatalf("versions %q", v)
	}
	was := imageNow(t, r)
	copyTo(t, payload, program, "another build") // what follows an ELF image is ignored
	now := imageNow(t, r)
	sandboxtest.MustStart(t, r, second)
	for _, m := range []*Runtime{r, i.manager(t)} { // a host that starts now sees the same
		a, _ := sandboxtest.Get(t, m, first.ID)
		b, _ := sandboxtest.Get(t, m, second.ID)
		if was == now || a.Image != was || b.Image != now || imageNow(t, m) != now {
			t.Errorf("the program was %s and is %s; the members have %s and %s, new ones would have %s", was, now, a.Image, b.Image, imageNow(t, m))
		}
	}
	if v := versions(t, i); len(v) != 2 {
		t.Errorf("both are in use, there are %q", v)
	}
	sandboxtest.MustStop(t, r, first.ID)
	if v := versions(t, i); len(v) != 1 {
		t.Errorf("one is in use, there are %q", v)
	}
	if st, _ := sandboxtest.Get(t, r, second.ID); !st.Running {
		t.Errorf("%+v", st)
	}
	var st unix.Stat_t
	root := filepath.Join(i.opts.Dir, "rootfs", versions(t, i)[0])
	if err := unix.Stat(root, &st); err != nil || st.Uid != 0 || st.Mode&0o022 != 0 {
		t.Errorf("%s: %+v, %v", root, st, err)
	}
}

func imageNow(t *testing.T, r *Runtime) string {
	t.Helper()
	name, err := r.Image()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func copyTo(t *testing.T, from, to, suffix string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, append(raw, suffix...), 0o755); err != nil {
		t.Fatal(err)
	}
}

func versions(t *testing.T, i *installation) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(i.opts.Dir, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestFailures: each says what, why and what to do, and leaves nothing.
func TestFailures(t *testing.T) {
	t.Parallel()
	notStatic := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(notStatic, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name          string
		change        func(*Options)
		message, hint string
	}{
		{"no runtime", func(o *Options) { o.Runtime = "no-such-runc" }, `"no-such-runc" is missing`, "apt-get install no-such-runc"},
		{"no program", func(o *Options) { o.Program = "/no/such/gateway" }, "/no/such/gateway", "make build"},
		{"no CA certificates", func(o *Options) { o.CACerts = "/no/such/ca.crt" }, "/no/such/ca.crt", "ca-certificates"},
		{"not a static program", func(o *Options) { o.Program = notStatic }, "sluice-gateway", "static binary"},
		{"wrong argument", func(o *Options) { o.RuntimeArgs = []string{"--no-such-flag"} }, "no-such-flag", "runc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			i := newInstallation(t)
			tc.change(&i.opts)
			r := i.manager(t)
			err := r.Start(t.Context(), spec(t, "m-1-7", sandboxtest.Command{Do: "sleep"}))
			e := errs.As(err)
			if e == nil || e.Class != errs.Unavailable || !strings.Contains(e.Message, tc.message) || !strings.Contains(e.Hint, tc.hint) {
				t.Errorf("error %v, %+v", err, e)
			}
			if ids, err := r.ids(); err != nil || len(ids) != 0 {
				t.Errorf("left over: %q, %v", ids, err)
			}
		})
	}
}

func TestUntraversableDir(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	i.opts.Dir = filepath.Join(closed, "run")
	err := i.manager(t).Start(t.Context(), spec(t, "m-1-7", sandboxtest.Command{Do: "sleep"}))
	if errs.ClassOf(err) != errs.Invalid || !strings.Contains(errs.As(err).Hint, "chmod o+x") {
		t.Errorf("error %v, hint %q", err, errs.As(err).Hint)
	}
}

func TestCancelledStart(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	r := i.manager(t)
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 15 * time.Millisecond, 30 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		err := r.Start(ctx, spec(t, "m-1-7", sandboxtest.Command{Do: "sleep"}))
		cancel()
		if err == nil {
			sandboxtest.MustStop(t, r, "m-1-7") // it was faster
		} else if c := errs.ClassOf(err); c != errs.Timeout {
			t.Errorf("after %v: %v (%s)", after, err, c)
		}
		if ids, err := r.ids(); err != nil || len(ids) != 0 {
			t.Errorf("after %v, left over: %q, %v", after, ids, err)
		}
	}
}

// TestStartedByHalf starts a sandbox again whose first manager died before it had its boot data
// for certain: the process that is there counts for nothing, whatever it is doing.
func TestStartedByHalf(t *testing.T) {
	t.Parallel()
	r := newInstallation(t).manager(t)
	s := spec(t, "m-1-7", sandboxtest.Command{Do: "sleep"})
	sandboxtest.MustStart(t, r, s)
	first, _ := sandboxtest.Get(t, r, s.ID)
	if err := os.Remove(r.bundle(s.ID).bootMark()); err != nil {
		t.Fatal(err)
	}
	half, ok := sandboxtest.Get(t, r, s.ID)
	if !ok || half.Running || half.Exit.Reason != "its start was interrupted" {
		t.Errorf("listed as %+v", half)
	}
	sandboxtest.MustStart(t, r, s)
	if again, _ := sandboxtest.Get(t, r, s.ID); !again.Running || again.PID == first.PID {
		t.Errorf("started as process %d, then as %+v", first.PID, again)
	}
	if inCgroup(first.PID, r.cgroup(s.ID)) {
		t.Errorf("process %d lives on", first.PID)
	}
}

// TestDamage stops sandboxes whose records were damaged.
func TestDamage(t *testing.T) {
	t.Parallel()
	bystander := exec.Command("sleep", "600")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bystander.Process.Kill(); err != nil {
			t.Errorf("a process that is none of ours was ended: %v", err)
		}
		bystander.Wait() // it was killed
	})
	for name, damage := range map[string]func(r *Runtime, id string) error{
		"the runtime's state is garbage": func(r *Runtime, id string) error {
			return os.WriteFile(filepath.Join(r.runtimeRoot(), id, "state.json"), []byte("{"), 0o600)
		},
		"the runtime's state is gone": func(r *Runtime, id string) error {
			return os.RemoveAll(filepath.Join(r.runtimeRoot(), id))
		},
		"the bundle is gone":   func(r *Runtime, id string) error { return os.RemoveAll(string(r.bundle(id))) },
		"the pid file is gone": func(r *Runtime, id string) error { return os.Remove(r.bundle(id).pidFile()) },
		"only the cgroup is left": func(r *Runtime, id string) error {
			if err := os.RemoveAll(string(r.bundle(id))); err != nil {
				return err
			}
			return os.RemoveAll(r.runtimeRoot())
		},
		"the pid is another process's": func(r *Runtime, id string) error {
			return os.WriteFile(r.bundle(id).pidFile(), []byte(strconv.Itoa(bystander.Process.Pid)), 0o600)
		},
		"the record is garbage": func(r *Runtime, id string) error {
			return os.WriteFile(filepath.Join(string(r.bundle(id)), "record.json"), []byte("{"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newInstallation(t).manager(t)
			s := spec(t, "m-1-7", sandboxtest.Command{Do: "stubborn"})
			sandboxtest.MustStart(t, r, s)
			st, _ := sandboxtest.Get(t, r, s.ID)
			if err := damage(r, s.ID); err != nil {
				t.Fatal(err)
			}
			if _, ok := sandboxtest.Get(t, r, s.ID); !ok {
				t.Error("it is not listed any more")
			}
			sandboxtest.MustStop(t, r, s.ID)
			if bystander.Process.Signal(unix.Signal(0)) != nil || isZombie(bystander.Process.Pid) {
				t.Error("a process that is none of ours was ended")
			}
			if inCgroup(st.PID, r.cgroup(s.ID)) {
				t.Errorf("process %d lives on", st.PID)
			}
		})
	}
}
