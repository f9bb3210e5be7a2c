package oci

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
	"github.com/sluice-gateway/sluice/internal/sandbox/sandboxtest"
)

// TestAdoptedIsLikeStarted compares the limits of one that was adopted with those of one
// that was started, as the kernel has them.
func TestAdoptedIsLikeStarted(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	r := i.manager(t)
	h := sandboxtest.Harness{NetNS: sandboxtest.NetNS(t)}
	adopted, started := h.Spec("m-1-7", sandboxtest.Command{Do: "sleep"}), h.Spec("m-2-7", sandboxtest.Command{Do: "sleep"})
	adopted.Size.MemoryMiB, adopted.Size.CPUs = 96, 1.5
	started.Size = adopted.Size
	h.MustPrepare(t, r, "b-1")
	sandboxtest.MustAdopt(t, r, "b-1", adopted)
	sandboxtest.MustStart(t, r, started)
	if diff := cmp.Diff(limitsOf(t, r, started.ID), limitsOf(t, r, adopted.ID)); diff != "" {
		t.Errorf("limits (-started +adopted):\n%s", diff)
	}
}

func limitsOf(t *testing.T, r *Runtime, id string) map[string]string {
	t.Helper()
	cg, err := findCgroups()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, dir := range cg.paths(r.cgroup(r.container(id))) {
		for _, name := range []string{
			"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "cpu.cfs_quota_us", "cpu.cfs_period_us",
			"memory.max", "memory.swap.max", "cpu.max", "pids.max",
		} {
			if raw, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				out[name] = string(raw)
			}
		}
	}
	if len(out) < 4 {
		t.Fatalf("the limits of %s: %v", id, out)
	}
	return out
}

// TestBlankHoldsNothing looks at a blank from outside: it waits in the namespace that it
// was given, and neither the program's environment nor the disk tells whose it will be.
func TestBlankHoldsNothing(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	r := i.manager(t)
	h := sandboxtest.Harness{NetNS: sandboxtest.NetNS(t)}
	st := h.MustPrepare(t, r, "b-1")
	proc := filepath.Join("/proc", strconv.Itoa(st.PID))
	routes, err := os.ReadFile(filepath.Join(proc, "net/route"))
	if err != nil || bytes.Count(routes, []byte("\n")) > 1 { // the heading
		t.Errorf("routes: %q, %v", routes, err)
	}
	env, err := os.ReadFile(filepath.Join(proc, "environ"))
	if err != nil {
		t.Fatal(err)
	}
	for v := range strings.SplitSeq(strings.TrimSuffix(string(env), "\x00"), "\x00") {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "HOME", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK", "SSL_CERT_FILE":
		default:
			t.Errorf("its environment has %s", v)
		}
	}
	cg, err := findCgroups()
	if err != nil {
		t.Fatal(err)
	}
	want := blankSize.MemoryMiB << 20
	if got, err := readNumber(cg.file(r.cgroup("b-1"), "memory", "memory.limit_in_bytes", "memory.max")); err != nil || got != want {
		t.Errorf("its memory limit is %d, want %d (%v)", got, want, err)
	}
}

func TestBlankThatCannotBecome(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		spoil func(t *testing.T, pid int, netns *string)
		class errs.Class
	}{
		"it was killed": {func(t *testing.T, pid int, _ *string) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, errs.Unavailable},
		"it is in another namespace": {func(t *testing.T, _ int, netns *string) { *netns = sandboxtest.NetNS(t) }, errs.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newInstallation(t)
			r := i.manager(t)
			h := sandboxtest.Harness{NetNS: sandboxtest.NetNS(t)}
			st := h.MustPrepare(t, r, "b-1")
			spec := h.Spec("m-1-7", sandboxtest.Command{Do: "sleep"})
			tc.spoil(t, st.PID, &spec.NetNS)
			if spec.NetNS == h.NetNS {
				if got := <-r.Exits(); got != "b-1" {
					t.Errorf("%s ended", got)
				}
			}
			if err := r.Adopt(t.Context(), "b-1", spec); errs.ClassOf(err) != tc.class {
				t.Errorf("Adopt: %v, want class %s", err, tc.class)
			}
			if states, err := r.List(t.Context()); err != nil || len(states) > 0 {
				t.Errorf("left over: %+v, %v", states, err)
			}
			sandboxtest.MustStart(t, r, spec) // the ordinary way
		})
	}
}

// TestAdoptionInterrupted looks at what a host leaves that dies in the middle of Adopt.
func TestAdoptionInterrupted(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		half func(r *Runtime, spec sandbox.Spec) error
		want sandbox.State
	}{
		"before it has its name": {func(r *Runtime, spec sandbox.Spec) error { return r.describe("b-1", spec) },
			sandbox.State{ID: "b-1", Blank: true, Exit: sandbox.Exit{Code: -1, Reason: "it ended before it became a member"}}},
		"before it has its boot data": {func(r *Runtime, spec sandbox.Spec) error { return r.become("b-1", spec) },
			sandbox.State{ID: "m-1-7", Labels: map[string]string{"member": "m-1-7"}, Exit: sandbox.Exit{Code: -1, Reason: "its start was interrupted"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := newInstallation(t)
			h := sandboxtest.Harness{NetNS: sandboxtest.NetNS(t)}
			spec := h.Spec("m-1-7", sandboxtest.Command{Do: "sleep"})
			spec.Labels = map[string]string{"member": spec.ID}
			r := i.manager(t)
			h.MustPrepare(t, r, "b-1")
			if err := tc.half(r, spec); err != nil {
				t.Fatal(err)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			later := i.manager(t)
			waitProcess(t, later, tc.want.ID)
			states, err := later.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i := range states {
				states[i].Exit.LogTail = ""                       // the program's own last words
				if states[i].Blank && states[i].Exit.Code == 97 { // whoever reaped it may have noted how it ended
					states[i].Exit = tc.want.Exit
				}
			}
			if tc.want.Image, err = later.Image(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]sandbox.State{tc.want}, states); diff != "" {
				t.Fatalf("listed (-want +got):\n%s", diff)
			}
			sandboxtest.MustStart(t, later, spec)
			sandboxtest.MustStop(t, later, spec.ID)
			sandboxtest.MustStop(t, later, "b-1")
		})
	}
}
