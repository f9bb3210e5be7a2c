package oci

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// watch waits for the end of one sandbox.
type watch struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (w *watch) end() {
	w.cancel()
	<-w.done
}

// watch takes over p and watches it, unless the sandbox is watched already.
func (r *Runtime) watch(id string, p *proc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watches[id] != nil || r.ctx.Err() != nil {
		p.close()
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	w := &watch{cancel, make(chan struct{})}
	r.watches[id] = w
	go func() {
		defer close(w.done)
		defer p.close()
		r.await(ctx, id, p)
	}()
}

// unwatch ends a watch: what ends from here on does not end by itself.
func (r *Runtime) unwatch(id string) {
	r.mu.Lock()
	w := r.watches[id]
	delete(r.watches, id)
	r.mu.Unlock()
	if w != nil {
		w.end()
	}
}

func (r *Runtime) await(ctx context.Context, id string, p *proc) {
	if !p.wait(ctx, -1) {
		return
	}
	b := r.bundle(id)
	exit := r.judge(id, b.record(), p)
	if err := writeJSON(b.exitFile(), exit); err != nil && !os.IsNotExist(err) {
		r.log.Warn("a member's end can't be recorded", "sandbox", id, "error", err)
	}
	r.log.Info("a member ended", "sandbox", id, "reason", exit.Reason)
	// Nobody need be reading: Stop and Close end the wait.
	select {
	case r.exits <- id:
	case <-ctx.Done():
	}
}

// exitOf returns how a sandbox that does not run ended.
func (r *Runtime) exitOf(id string, b bundle, rec record) sandbox.Exit {
	exit, ok := b.exit()
	switch {
	case ok:
	case !b.booted():
		exit = sandbox.Exit{Code: -1, Reason: "its start was interrupted"}
	default:
		exit = r.judge(id, rec, nil)
	}
	exit.LogTail = b.logTail()
	return exit
}

// judge tells why a sandbox ended, from its cgroup, which still stands, and from the
// process if there was one to watch.
func (r *Runtime) judge(id string, rec record, p *proc) sandbox.Exit {
	status, known := unix.WaitStatus(0), false
	if p != nil {
		status, known = p.exitStatus()
	}
	killed := !known || status.Signaled() && status.Signal() == unix.SIGKILL
	if cg, err := findCgroups(); err == nil && killed && cg.oomKills(r.cgroup(cmp.Or(rec.Container, id))) > 0 {
		return sandbox.Exit{OutOfMemory: true, Code: 128 + int(unix.SIGKILL),
			Reason: fmt.Sprintf("out of memory: the limit is %d MiB", rec.Size.MemoryMiB)}
	}
	switch {
	case !known:
		return sandbox.Exit{Code: -1, Reason: "it ended; its exit status could not be learned"}
	case status.Signaled():
		return sandbox.Exit{Code: 128 + int(status.Signal()),
			Reason: fmt.Sprintf("killed by signal %d (%s)", int(status.Signal()), unix.SignalName(status.Signal()))}
	}
	return sandbox.Exit{Code: status.ExitStatus(), Reason: fmt.Sprintf("exit status %d", status.ExitStatus())}
}
