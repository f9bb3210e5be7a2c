package fake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/sandbox"
	"github.com/sluice-gateway/sluice/internal/sandbox/sandboxtest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	sandboxtest.Run(t, func(t *testing.T) sandboxtest.Harness {
		m := NewMachine(obey)
		t.Cleanup(func() {
			if err := New(m).CleanUp(context.Background()); err != nil {
				t.Error(err)
			}
		})
		return sandboxtest.Harness{NetNS: "/run/netns/any", Manager: func(t *testing.T) sandbox.Runtime {
			r := New(m)
			t.Cleanup(func() { r.Close() })
			return r
		}}
	})
}

// obey does what the suite's boot data says.
func obey(ctx context.Context, p *Process) sandbox.Exit {
	var c sandboxtest.Command
	if err := json.Unmarshal(p.Spec.Boot, &c); err != nil {
		return sandbox.Exit{Code: 97, Reason: err.Error()}
	}
	select {
	case <-time.After(time.Duration(c.AfterMS) * time.Millisecond):
	case <-ctx.Done():
		return sandbox.Exit{Reason: "exit status 0"}
	}
	switch limit := p.Spec.Size.MemoryMiB; {
	case c.Do == "exit":
	case int64(c.MiB) > limit:
		return sandbox.Exit{OutOfMemory: true, Code: 137, Reason: fmt.Sprintf("out of memory: the limit is %d MiB", limit)}
	default:
		used := int64(c.MiB) << 20
		p.Use(sandbox.Usage{MemoryBytes: used, PeakMemoryBytes: used, CPUSeconds: 0.01})
		<-ctx.Done()
	}
	return sandbox.Exit{Code: c.Code, Reason: fmt.Sprintf("exit status %d", c.Code), LogTail: sandboxtest.BootLine(p.Spec.Boot)}
}

func TestMachine(t *testing.T) {
	t.Parallel()
	m := NewMachine(nil)
	r := New(m)
	t.Cleanup(func() { r.Close() })
	spec := sandboxtest.Harness{NetNS: "/run/netns/any"}.Spec("m-1-7", sandboxtest.Command{})

	refuse := errors.New("no")
	m.FailWith(func(op, id string) error {
		if op == "start" && id == spec.ID {
			return refuse
		}
		return nil
	})
	if err := r.Start(t.Context(), spec); !errors.Is(err, refuse) {
		t.Errorf("Start: %v", err)
	}
	m.FailWith(nil)
	sandboxtest.MustStart(t, r, spec)
	if got, ok := m.Spec(spec.ID); !ok || cmp.Diff(spec, got) != "" {
		t.Errorf("Spec = %+v, %v", got, ok)
	}
	want := sandbox.Exit{Code: 2, Reason: "exit status 2"}
	if !m.End(spec.ID, want) {
		t.Error("End: it does not run")
	}
	if st := sandboxtest.WaitExit(t, r, spec.ID); cmp.Diff(want, st.Exit) != "" {
		t.Errorf("exit = %+v", st.Exit)
	}
	if m.End(spec.ID, want) {
		t.Error("End: it runs again")
	}
	if diff := cmp.Diff([]string{spec.ID}, m.IDs()); diff != "" {
		t.Error(diff)
	}
}
