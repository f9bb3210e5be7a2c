package fake

import (
	"context"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// Prepare implements sandbox.Preparer.
func (r *Runtime) Prepare(ctx context.Context, id, netns string) error {
	if err := r.allowed(ctx, "prepare", id); err != nil {
		return err
	}
	spec := sandbox.Spec{ID: id, NetNS: netns, Size: core.MemberSize{CPUs: 1, MemoryMiB: 1}}
	if err := checkSpec(spec); err != nil {
		return err
	}
	b := r.m.prepare(spec, r)
	if b == nil {
		return errs.New(errs.Conflict, "prepare sandbox %s: there is one of that name", id)
	}
	r.watch(id, b)
	return nil
}

func (m *Machine) prepare(spec sandbox.Spec, owner *Runtime) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all[spec.ID] != nil {
		return nil
	}
	m.nextPID++
	return m.add(&box{spec: spec, image: m.image, pid: m.nextPID, owner: owner}, Idle)
}

// Adopt implements sandbox.Preparer.
func (r *Runtime) Adopt(ctx context.Context, blank string, spec sandbox.Spec) error {
	b := r.m.blankOf(r, blank)
	if b == nil {
		return errs.New(errs.NotFound, "adopt sandbox %s: this process has not prepared it", blank)
	}
	err := r.allowed(ctx, "adopt", spec.ID)
	if err == nil {
		err = checkSpec(spec)
	}
	if err == nil && r.m.running(blank) == nil {
		err = errs.New(errs.Unavailable, "adopt sandbox %s: it has ended", blank)
	}
	for _, id := range []string{blank, spec.ID} {
		r.unwatch(id)
		r.m.stop(id)
	}
	if err != nil {
		return err
	}
	r.m.mu.Lock()
	b = r.m.add(&box{spec: spec, image: b.image, pid: b.pid}, r.m.program)
	r.m.mu.Unlock()
	r.watch(spec.ID, b)
	return nil
}

func (m *Machine) blankOf(r *Runtime, id string) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.all[id]; b != nil && b.owner == r {
		return b
	}
	return nil
}
