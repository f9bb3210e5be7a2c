package sandboxtest

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// MustPrepare prepares a blank in the harness's namespace and checks that nothing is known of it
// but that it runs.
func (h Harness) MustPrepare(t *testing.T, r sandbox.Runtime, id string) sandbox.State {
	t.Helper()
	if err := r.(sandbox.Preparer).Prepare(t.Context(), id, h.NetNS); err != nil {
		t.Fatalf("Prepare(%s): %v (hint: %s)", id, err, errs.As(err).Hint)
	}
	st := mustRun(t, r, id)
	if diff := cmp.Diff(sandbox.State{ID: id, Running: true, PID: st.PID, Blank: true, Image: image(t, r)}, st); diff != "" {
		t.Fatalf("a blank (-want +got):\n%s", diff)
	}
	return st
}

// image is what the next sandbox would be started from, "" of a Runtime that can't tell.
func image(t *testing.T, r sandbox.Runtime) string {
	t.Helper()
	im, ok := r.(sandbox.Imager)
	if !ok {
		return ""
	}
	name, err := im.Image()
	if err != nil || name == "" {
		t.Errorf("Image: %q, %v", name, err)
	}
	return name
}

// MustAdopt makes a blank into a sandbox and checks that it is known as that alone.
func MustAdopt(t *testing.T, r sandbox.Runtime, blank string, spec sandbox.Spec) {
	t.Helper()
	if err := r.(sandbox.Preparer).Adopt(t.Context(), blank, spec); err != nil {
		t.Fatalf("Adopt(%s, %s): %v (hint: %s)", blank, spec.ID, err, errs.As(err).Hint)
	}
	states, err := r.List(t.Context())
	if err != nil || len(states) != 1 || states[0].ID != spec.ID || states[0].Blank {
		t.Fatalf("after %s became %s: %+v, %v", blank, spec.ID, states, err)
	}
	if diff := cmp.Diff(spec.Labels, states[0].Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

func prepareAdopt(t *testing.T, h Harness) {
	r := h.Manager(t)
	blank := h.MustPrepare(t, r, "b-1")
	if err := r.(sandbox.Preparer).Prepare(t.Context(), "b-1", h.NetNS); errs.ClassOf(err) != errs.Conflict {
		t.Errorf("a second Prepare: %v", err)
	}
	spec := h.Spec("m-1-7", Command{Do: "exit", AfterMS: 1500, Code: 3})
	MustAdopt(t, r, "b-1", spec)
	if st := mustRun(t, r, spec.ID); st.PID != blank.PID {
		t.Errorf("process %d became %d", blank.PID, st.PID)
	}
	if err := r.Stop(t.Context(), "b-1"); err != nil { // means nothing any more
		t.Error(err)
	}
	if st := mustRun(t, r, spec.ID); st.Image != blank.Image {
		t.Errorf("what was started from %q became %q", blank.Image, st.Image)
	}
	MustStart(t, r, spec) // runs already
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	later := h.Manager(t)
	if st := mustRun(t, later, spec.ID); st.PID != blank.PID {
		t.Errorf("a later manager sees %+v", st)
	}
	st := WaitExit(t, later, spec.ID)
	if st.Exit.Code != 3 || !strings.Contains(st.Exit.LogTail, BootLine(spec.Boot)) {
		t.Errorf("exit = %+v", st.Exit)
	}
	MustStop(t, later, spec.ID)
}

func blankStopped(t *testing.T, h Harness) {
	r := h.Manager(t)
	h.MustPrepare(t, r, "b-1")
	within(t, 5*time.Second, "Stop", func() { MustStop(t, r, "b-1") })
	err := r.(sandbox.Preparer).Adopt(t.Context(), "b-1", h.Spec("m-1-7", Command{Do: "sleep"}))
	if errs.ClassOf(err) != errs.NotFound {
		t.Errorf("adopting it: %v", err)
	}
	if states, err := r.List(t.Context()); err != nil || len(states) != 0 {
		t.Errorf("left over: %+v, %v", states, err)
	}
}

func blankOutlived(t *testing.T, h Harness) {
	first := h.Manager(t)
	h.MustPrepare(t, first, "b-1")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := h.Manager(t)
	waitEnded(t, second, []string{"b-1"})
	st, ok := Get(t, second, "b-1")
	if !ok || !st.Blank || len(st.Labels) > 0 || st.Exit.Reason == "" {
		t.Errorf("state = %+v", st)
	}
	spec := h.Spec("m-1-7", Command{Do: "sleep"})
	if err := second.(sandbox.Preparer).Adopt(t.Context(), "b-1", spec); errs.ClassOf(err) != errs.NotFound {
		t.Errorf("adopting it: %v", err)
	}
	MustStop(t, second, "b-1")
	h.MustPrepare(t, second, "b-1")
	MustAdopt(t, second, "b-1", spec)
	MustStop(t, second, spec.ID)
}

func adoptAgain(t *testing.T, h Harness) {
	r := h.Manager(t)
	MustStart(t, r, h.Spec("m-1-7", Command{Do: "exit"}))
	WaitExit(t, r, "m-1-7")
	h.MustPrepare(t, r, "b-1")
	spec := h.Spec("m-1-7", Command{Do: "exit", Code: 5})
	MustAdopt(t, r, "b-1", spec)
	if st := WaitExit(t, r, spec.ID); st.Exit.Code != 5 {
		t.Errorf("exit = %+v", st.Exit)
	}
}

func adoptRefused(t *testing.T, h Harness) {
	r := h.Manager(t)
	for name, change := range map[string]func(*sandbox.Spec){
		"no ID":            func(s *sandbox.Spec) { s.ID = "" },
		"no memory":        func(s *sandbox.Spec) { s.Size.MemoryMiB = 0 },
		"absent namespace": func(s *sandbox.Spec) { s.NetNS = "/run/netns/sluice-no-such" },
	} {
		h.MustPrepare(t, r, "b-1")
		spec := h.Spec("m-1-7", Command{Do: "sleep"})
		change(&spec)
		err := r.(sandbox.Preparer).Adopt(t.Context(), "b-1", spec)
		if c := errs.ClassOf(err); c != errs.Invalid && c != errs.NotFound {
			t.Errorf("%s: %v", name, err)
		}
		if states, err := r.List(t.Context()); err != nil || len(states) != 0 {
			t.Fatalf("%s: left over: %+v, %v", name, states, err)
		}
	}
}

func adoptedSize(t *testing.T, h Harness) {
	const mib = 100
	for _, c := range []struct {
		size core.MemberSize
		fits bool
	}{
		{core.MemberSize{CPUs: 0.5, MemoryMiB: 200}, true},
		{core.MemberSize{CPUs: 0.5, MemoryMiB: 80}, false},
		{core.MemberSize{CPUs: 0.5, MemoryMiB: 48}, false}, // less than it waited with
	} {
		r := h.Manager(t)
		h.MustPrepare(t, r, "b-1")
		spec := h.Spec("m-1-7", Command{Do: "allocate", MiB: mib})
		spec.Size = c.size
		MustAdopt(t, r, "b-1", spec)
		if !c.fits {
			if st := WaitExit(t, r, spec.ID); !st.Exit.OutOfMemory || !strings.Contains(st.Exit.Reason, "limit is") {
				t.Errorf("%+v: exit = %+v", c.size, st.Exit)
			}
			MustStop(t, r, spec.ID)
			continue
		}
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if u, err := r.Usage(t.Context(), spec.ID); err == nil && u.MemoryBytes >= mib<<20 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%+v: it does not get its memory", c.size)
			}
		}
		MustStop(t, r, spec.ID)
	}
}
