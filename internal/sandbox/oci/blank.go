package oci

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// blankSize is what a blank may use. Waiting, a member takes some 10 MiB.
var blankSize = core.MemberSize{CPUs: 1, MemoryMiB: 64}

// Prepare implements sandbox.Preparer.
func (r *Runtime) Prepare(ctx context.Context, id, netns string) error {
	spec := sandbox.Spec{ID: id, NetNS: netns, Size: blankSize}
	if err := r.checkSpec(spec); err != nil {
		return err
	}
	if r.exists(id) {
		return errs.New(errs.Conflict, "prepare sandbox %s: there is one of that name", id)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p, boot, err := r.launch(ctx, spec, record{Size: blankSize, Blank: true})
	if err != nil {
		return r.undo(ctx, id, err)
	}
	if !r.keepBlank(id, boot) {
		p.close()
		boot.Close() // nothing was written to it
		return r.undo(ctx, id, errs.New(errs.Cancelled, "prepare sandbox %s: the runtime was closed", id))
	}
	r.watch(id, p)
	return nil
}

// Adopt implements sandbox.Preparer.
func (r *Runtime) Adopt(ctx context.Context, blank string, spec sandbox.Spec) error {
	boot := r.takeBlank(blank)
	if boot == nil {
		return errs.New(errs.NotFound, "adopt sandbox %s: this process has not prepared it", blank)
	}
	defer boot.Close()
	r.unwatch(blank)
	p, err := r.adopt(ctx, blank, spec, boot)
	if err != nil {
		return r.undo(ctx, spec.ID, r.undo(ctx, blank, err))
	}
	r.watch(spec.ID, p)
	return nil
}

// adopt returns the process of the sandbox. The bundle's new name is what makes the blank
// the member's: a crash before that leaves a blank, one after it an interrupted start.
func (r *Runtime) adopt(ctx context.Context, blank string, spec sandbox.Spec, boot *os.File) (_ *proc, err error) {
	if err := r.checkSpec(spec); err != nil {
		return nil, err
	}
	p := r.find(blank)
	if p == nil {
		return nil, errs.New(errs.Unavailable, "adopt sandbox %s: it has ended", blank)
	}
	defer func() {
		if err != nil {
			p.reap()
			p.close()
		}
	}()
	if err := p.isIn(spec.NetNS); err != nil {
		return nil, err
	}
	r.unwatch(spec.ID)
	if r.exists(spec.ID) {
		if err := r.remove(ctx, spec.ID); err != nil {
			return nil, err
		}
	}
	if err := r.become(blank, spec); err != nil {
		return nil, r.startError(spec.ID, err)
	}
	return p, r.handOver(ctx, spec, boot)
}

// become gives a blank's cgroup and bundle the limits, labels and name of a sandbox.
func (r *Runtime) become(blank string, spec sandbox.Spec) error {
	if err := r.describe(blank, spec); err != nil {
		return err
	}
	return os.Rename(string(r.bundle(blank)), string(r.bundle(spec.ID)))
}

// describe is all of become but the name: until the bundle has that, it is a blank's.
func (r *Runtime) describe(blank string, spec sandbox.Spec) error {
	cg, err := findCgroups()
	if err != nil {
		return err
	}
	if err := cg.resize(r.cgroup(blank), spec.Size); err != nil {
		return fmt.Errorf("setting its limits: %w", err)
	}
	b := r.bundle(blank)
	rec := record{Labels: spec.Labels, Size: spec.Size, RootFS: b.record().RootFS, ID: spec.ID, Container: blank}
	return b.setRecord(rec)
}

// isIn checks that a process is in a network namespace.
func (p *proc) isIn(netns string) error {
	var own, want unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(p.pid)+"/ns/net", &own); err != nil {
		return errs.New(errs.Unavailable, "the network namespace of process %d can't be read: %w", p.pid, err)
	}
	if err := unix.Stat(netns, &want); err != nil {
		return errs.New(errs.NotFound, "the network namespace is missing: %w", err)
	}
	if own.Ino != want.Ino || own.Dev != want.Dev {
		return errs.New(errs.Conflict, "process %d is not in the network namespace %s", p.pid, netns)
	}
	return nil
}

func (r *Runtime) keepBlank(id string, boot *os.File) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return false
	}
	r.blanks[id] = boot
	return true
}

// takeBlank returns the boot pipe of a blank that this process prepared, once, or nil.
func (r *Runtime) takeBlank(id string) *os.File {
	r.mu.Lock()
	defer r.mu.Unlock()
	boot := r.blanks[id]
	delete(r.blanks, id)
	return boot
}

func (r *Runtime) blankState(id string) sandbox.State {
	st := sandbox.State{ID: id, Blank: true, Image: r.bundle(id).record().RootFS}
	if p := r.find(id); p != nil {
		st.Running, st.PID = true, p.pid
		p.close()
		return st
	}
	b := r.bundle(id)
	st.Exit = sandbox.Exit{Code: -1, Reason: "it ended before it became a member", LogTail: b.logTail()}
	if exit, ok := b.exit(); ok {
		st.Exit.Code, st.Exit.Reason = exit.Code, exit.Reason
	}
	return st
}

// adopted says whether a container is that of a sandbox with another ID.
func (r *Runtime) adopted(container string) bool {
	ids, err := subdirectories(r.bundles())
	if err != nil {
		return true // it can't be told, so it is not to be touched
	}
	for _, id := range ids {
		if id != container && r.bundle(id).record().Container == container {
			return true
		}
	}
	return false
}
