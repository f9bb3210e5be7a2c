// Package sandboxtest is the suite that every implementation of sandbox.Runtime must
// pass. Only their tests import it.
package sandboxtest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// Command is the boot data of the suite's sandboxes: what the process in them does.
type Command struct {
	Do      string // sleep, stubborn, exit, allocate, confine, spin, spam, report
	AfterMS int    // wait first
	Code    int    // exit status
	MiB     int    // how much to allocate, or to write
	Padding string // makes the boot data long
}

// Boot returns the command as boot data.
func (c Command) Boot() []byte {
	raw, err := json.Marshal(c)
	if err != nil {
		panic(err) // a struct of strings and integers always marshals
	}
	return raw
}

// BootLine is what the process prints once it has its boot data.
func BootLine(boot []byte) string { return fmt.Sprintf("boot %x", sha256.Sum256(boot)) }

// Harness is one installation, empty at first.
type Harness struct {
	// Manager returns another Runtime over the same installation, as a restarted host
	// process would make.
	Manager func(t *testing.T) sandbox.Runtime
	NetNS   string
}

// Factory makes an installation and removes it when the test ends.
type Factory func(t *testing.T) Harness

// size is small, so that many fit on a small machine.
func size() core.MemberSize { return core.MemberSize{CPUs: 0.5, MemoryMiB: 64} }

// Spec returns a sandbox of the suite's size that does c.
func (h Harness) Spec(id string, c Command) sandbox.Spec {
	return sandbox.Spec{
		ID: id, NetNS: h.NetNS, Size: size(), Boot: c.Boot(),
		Labels: map[string]string{"member": id, "generation": "7", "gateway": "a gateway, named \"x\""},
	}
}

// Run runs the suite.
func Run(t *testing.T, factory Factory) {
	for name, test := range map[string]func(*testing.T, Harness){
		"start, list, stop":              startListStop,
		"exit seen":                      exitSeen,
		"out of memory":                  outOfMemory,
		"long boot data":                 longBoot,
		"manager restarts":               managerRestarts,
		"ends while nobody watches":      endsUnwatched,
		"stubborn":                       stubborn,
		"in parallel":                    inParallel,
		"nobody reads exits":             nobodyReadsExits,
		"stopping is not an exit":        stoppingIsNoExit,
		"start again":                    startAgain,
		"usage":                          usage,
		"clean up":                       cleanUp,
		"bad specs":                      badSpecs,
		"what does not exist can go":     stopUnknown,
		"closing leaves members running": closing,
		"prepare, adopt":                 prepareAdopt,
		"a blank can be stopped":         blankStopped,
		"a blank ends with its manager":  blankOutlived,
		"adopting takes another's place": adoptAgain,
		"a blank that can't be adopted":  adoptRefused,
		"an adopted one's size":          adoptedSize,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, factory(t))
		})
	}
}

// Get returns the state of one sandbox.
func Get(t *testing.T, r sandbox.Runtime, id string) (sandbox.State, bool) {
	t.Helper()
	states, err := r.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	i := slices.IndexFunc(states, func(s sandbox.State) bool { return s.ID == id })
	if i < 0 {
		return sandbox.State{}, false
	}
	return states[i], true
}

// MustStart starts a sandbox.
func MustStart(t *testing.T, r sandbox.Runtime, spec sandbox.Spec) {
	t.Helper()
	if err := r.Start(t.Context(), spec); err != nil {
		t.Fatalf("Start(%s): %v (hint: %s)", spec.ID, err, errs.As(err).Hint)
	}
}

func mustRun(t *testing.T, r sandbox.Runtime, id string) sandbox.State {
	t.Helper()
	st, ok := Get(t, r, id)
	if !ok || !st.Running || st.PID <= 0 {
		t.Fatalf("%s should run: %+v", id, st)
	}
	return st
}

// MustStop stops a sandbox and checks that it is not listed any more.
func MustStop(t *testing.T, r sandbox.Runtime, id string) {
	t.Helper()
	if err := r.Stop(t.Context(), id); err != nil {
		t.Fatalf("Stop(%s): %v", id, err)
	}
	if st, ok := Get(t, r, id); ok {
		t.Fatalf("%s is still listed: %+v", id, st)
	}
}

// WaitExit waits until r reports the end of a sandbox and returns its state.
func WaitExit(t *testing.T, r sandbox.Runtime, id string) sandbox.State {
	t.Helper()
	select {
	case got := <-r.Exits():
		if got != id {
			t.Fatalf("%s ended, want %s", got, id)
		}
	case <-time.After(20 * time.Second):
		st, _ := Get(t, r, id)
		t.Fatalf("the end of %s was not reported; it is %+v", id, st)
	}
	st, ok := Get(t, r, id)
	if !ok || st.Running || st.PID != 0 {
		t.Fatalf("%s should be listed as ended: %+v", id, st)
	}
	return st
}

func startListStop(t *testing.T, h Harness) {
	r := h.Manager(t)
	spec := h.Spec("m-1-7", Command{Do: "sleep"})
	if _, ok := Get(t, r, spec.ID); ok {
		t.Fatal("listed before its start")
	}
	MustStart(t, r, spec)
	first := mustRun(t, r, spec.ID)
	if diff := cmp.Diff(spec.Labels, first.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if now := image(t, r); first.Image != now {
		t.Errorf("it was started from %q, the next one would be from %q", first.Image, now)
	}
	MustStart(t, r, spec)
	if again := mustRun(t, r, spec.ID); again.PID != first.PID {
		t.Errorf("a second Start replaced process %d by %d", first.PID, again.PID)
	}
	MustStop(t, r, spec.ID)
	MustStop(t, r, spec.ID)
}

func stopUnknown(t *testing.T, h Harness) {
	r := h.Manager(t)
	for _, id := range []string{"m-never", "", "..", "a/b", "/"} {
		if err := r.Stop(t.Context(), id); err != nil {
			t.Errorf("Stop(%q): %v", id, err)
		}
	}
}

func exitSeen(t *testing.T, h Harness) {
	r := h.Manager(t)
	spec := h.Spec("m-1-7", Command{Do: "exit", Code: 3})
	MustStart(t, r, spec)
	st := WaitExit(t, r, spec.ID)
	if st.Exit.Code != 3 || st.Exit.OutOfMemory || st.Exit.Reason != "exit status 3" {
		t.Errorf("exit = %+v", st.Exit)
	}
	if !strings.Contains(st.Exit.LogTail, BootLine(spec.Boot)) {
		t.Errorf("the log %q lacks the line %q", st.Exit.LogTail, BootLine(spec.Boot))
	}
	MustStop(t, r, spec.ID)
}

func outOfMemory(t *testing.T, h Harness) {
	r := h.Manager(t)
	spec := h.Spec("m-1-7", Command{Do: "allocate", MiB: 200})
	MustStart(t, r, spec)
	st := WaitExit(t, r, spec.ID)
	if !st.Exit.OutOfMemory || st.Exit.Reason != "out of memory: the limit is 64 MiB" {
		t.Errorf("exit = %+v", st.Exit)
	}
	if again := h.Manager(t); true {
		if st, _ := Get(t, again, spec.ID); !st.Exit.OutOfMemory {
			t.Errorf("a later manager sees %+v", st)
		}
	}
}

func longBoot(t *testing.T, h Harness) {
	r := h.Manager(t)
	spec := h.Spec("m-1-7", Command{Do: "exit", Padding: strings.Repeat("secret", 50_000)})
	MustStart(t, r, spec)
	st := WaitExit(t, r, spec.ID)
	if st.Exit.Code != 0 || !strings.Contains(st.Exit.LogTail, BootLine(spec.Boot)) {
		t.Errorf("exit = %+v", st.Exit)
	}
}

func managerRestarts(t *testing.T, h Harness) {
	first := h.Manager(t)
	spec := h.Spec("m-1-7", Command{Do: "exit", AfterMS: 1500, Code: 4})
	lasting := h.Spec("m-2-7", Command{Do: "sleep"})
	MustStart(t, first, spec)
	MustStart(t, first, lasting)
	want := mustRun(t, first, lasting.ID)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := h.Manager(t)
	if diff := cmp.Diff(want, mustRun(t, second, lasting.ID)); diff != "" {
		t.Errorf("state after a restart (-before +after):\n%s", diff)
	}
	if st := WaitExit(t, second, spec.ID); st.Exit.Code != 4 {
		t.Errorf("exit = %+v", st.Exit)
	}
	MustStart(t, second, lasting) // runs already
	if st := mustRun(t, second, lasting.ID); st.PID != want.PID {
		t.Errorf("process %d became %d", want.PID, st.PID)
	}
	MustStop(t, second, lasting.ID)
}

func endsUnwatched(t *testing.T, h Harness) {
	first := h.Manager(t)
	spec := h.Spec("m-1-7", Command{Do: "exit", AfterMS: 200, Code: 4})
	MustStart(t, first, spec)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	second := h.Manager(t)
	st, ok := Get(t, second, spec.ID)
	if !ok || st.Running || st.Exit.Reason == "" {
		t.Errorf("state = %+v", st)
	}
	MustStop(t, second, spec.ID)
}

func stubborn(t *testing.T, h Harness) {
	r := h.Manager(t)
	spec := h.Spec("m-1-7", Command{Do: "stubborn"})
	MustStart(t, r, spec)
	MustStop(t, r, spec.ID)
}

func inParallel(t *testing.T, h Harness) {
	r := h.Manager(t)
	const n = 8
	var wg sync.WaitGroup
	each := func(f func(spec sandbox.Spec) error) {
		t.Helper()
		for i := range n {
			spec := h.Spec(fmt.Sprintf("m-%d-7", i), Command{Do: "sleep"})
			wg.Go(func() {
				if err := f(spec); err != nil {
					t.Errorf("%s: %v", spec.ID, err)
				}
			})
		}
		wg.Wait()
	}
	each(func(s sandbox.Spec) error { return r.Start(t.Context(), s) })
	states, err := r.List(t.Context())
	if err != nil || len(states) != n {
		t.Fatalf("%d of %d are listed: %v", len(states), n, err)
	}
	each(func(s sandbox.Spec) error { mustRun(t, r, s.ID); return r.Stop(t.Context(), s.ID) })
	if states, err := r.List(t.Context()); err != nil || len(states) != 0 {
		t.Errorf("left over: %+v, %v", states, err)
	}
}

func nobodyReadsExits(t *testing.T, h Harness) {
	r := h.Manager(t)
	ids := []string{"m-1-7", "m-2-7", "m-3-7"}
	for _, id := range ids {
		MustStart(t, r, h.Spec(id, Command{Do: "exit"}))
	}
	waitEnded(t, r, ids)
	within(t, 20*time.Second, "Stop", func() { MustStop(t, r, ids[0]) })
	within(t, 5*time.Second, "Close", func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

func waitEnded(t *testing.T, r sandbox.Runtime, ids []string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		running := 0
		for _, id := range ids {
			if st, _ := Get(t, r, id); st.Running {
				running++
			}
		}
		if running == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d still run", running)
		}
	}
}

func within(t *testing.T, d time.Duration, what string, f func()) {
	t.Helper()
	began := time.Now()
	f()
	if took := time.Since(began); took > d {
		t.Errorf("%s took %v", what, took)
	}
}

func stoppingIsNoExit(t *testing.T, h Harness) {
	r := h.Manager(t)
	MustStart(t, r, h.Spec("m-1-7", Command{Do: "sleep"}))
	MustStop(t, r, "m-1-7")
	select {
	case id := <-r.Exits():
		t.Errorf("%s was reported", id)
	case <-time.After(300 * time.Millisecond):
	}
}

func startAgain(t *testing.T, h Harness) {
	r := h.Manager(t)
	MustStart(t, r, h.Spec("m-1-7", Command{Do: "exit"}))
	WaitExit(t, r, "m-1-7")
	MustStart(t, r, h.Spec("m-1-7", Command{Do: "exit", AfterMS: 300, Code: 5}))
	mustRun(t, r, "m-1-7")
	if st := WaitExit(t, r, "m-1-7"); st.Exit.Code != 5 {
		t.Errorf("exit = %+v", st.Exit)
	}
}

func usage(t *testing.T, h Harness) {
	r := h.Manager(t)
	const mib = 20
	MustStart(t, r, h.Spec("m-1-7", Command{Do: "allocate", MiB: mib}))
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		u, err := r.Usage(t.Context(), "m-1-7")
		if err != nil {
			t.Fatal(err)
		}
		if u.MemoryBytes >= mib<<20 && u.PeakMemoryBytes >= u.MemoryBytes && u.PeakMemoryBytes <= 64<<20 && u.CPUSeconds > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("usage = %+v", u)
		}
	}
	if _, err := r.Usage(t.Context(), "m-2-7"); errs.ClassOf(err) != errs.NotFound {
		t.Errorf("usage of what does not run: %v", err)
	}
}

func cleanUp(t *testing.T, h Harness) {
	first := h.Manager(t)
	MustStart(t, first, h.Spec("m-1-7", Command{Do: "sleep"}))
	MustStart(t, first, h.Spec("m-2-7", Command{Do: "exit"}))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := h.Manager(t)
	for range 2 {
		if err := second.CleanUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if states, err := second.List(t.Context()); err != nil || len(states) != 0 {
			t.Errorf("left over: %+v, %v", states, err)
		}
	}
	MustStart(t, second, h.Spec("m-3-7", Command{Do: "sleep"}))
	mustRun(t, second, "m-3-7")
}

func badSpecs(t *testing.T, h Harness) {
	r := h.Manager(t)
	for name, change := range map[string]func(*sandbox.Spec){
		"no ID":            func(s *sandbox.Spec) { s.ID = "" },
		"a path as ID":     func(s *sandbox.Spec) { s.ID = "../x" },
		"no memory":        func(s *sandbox.Spec) { s.Size.MemoryMiB = 0 },
		"no namespace":     func(s *sandbox.Spec) { s.NetNS = "" },
		"absent namespace": func(s *sandbox.Spec) { s.NetNS = "/run/netns/sluice-no-such" },
	} {
		spec := h.Spec("m-1-7", Command{Do: "sleep"})
		change(&spec)
		err := r.Start(t.Context(), spec)
		if c := errs.ClassOf(err); c != errs.Invalid && c != errs.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if states, err := r.List(t.Context()); err != nil || len(states) != 0 {
		t.Errorf("left over: %+v, %v", states, err)
	}
}

func closing(t *testing.T, h Harness) {
	first := h.Manager(t)
	MustStart(t, first, h.Spec("m-1-7", Command{Do: "sleep"}))
	for range 2 {
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, h.Manager(t), "m-1-7")
}
