package oci

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// killRuntimes kills the runtime's processes that work for one container, or for any of
// this installation if it is "": a host that was killed leaves them running. The
// caller's own are not among them, since one ID is handled by one call at a time.
func (r *Runtime) killRuntimes(ctx context.Context, container string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return errs.New(errs.Internal, "list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if p := r.runtimeProcess(pid, container); p != nil {
			r.log.Info("killing a runtime process that was left behind", "pid", pid)
			p.signal(unix.SIGKILL)
			gone := p.wait(ctx, killTimeout)
			p.close()
			if !gone {
				return errs.New(errs.Timeout, "the runtime's process %d does not die", pid).
					WithHint("it waits in the kernel: see /proc/%d/stack", pid)
			}
		}
	}
	return nil
}

// runtimeProcess opens a process if it is the runtime's, and of the container.
func (r *Runtime) runtimeProcess(pid int, container string) *proc {
	if !r.worksFor(pid, container) {
		return nil
	}
	p := openProc(pid)
	if p == nil || !r.worksFor(pid, container) { // again, now that the number can't change hands
		if p != nil {
			p.close()
		}
		return nil
	}
	return p
}

// worksFor recognises a call of the runtime by its state directory among the arguments,
// and what it forked by the variable that runc hands down to it.
func (r *Runtime) worksFor(pid int, container string) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(args) == 0 {
		return false
	}
	words := bytes.Split(bytes.TrimSuffix(args, []byte{0}), []byte{0})
	isWord := func(s string) bool {
		return slices.ContainsFunc(words, func(w []byte) bool { return string(w) == s })
	}
	if isWord("--root") && isWord(r.runtimeRoot()) {
		return container == "" || string(words[len(words)-1]) == container
	}
	if !isWord("init") {
		return false
	}
	env, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return false
	}
	for v := range bytes.SplitSeq(env, []byte{0}) {
		if path, ok := bytes.CutPrefix(v, []byte("_LIBCONTAINER_STATEDIR=")); ok {
			return string(path) == filepath.Join(r.runtimeRoot(), container) ||
				container == "" && filepath.Dir(string(path)) == r.runtimeRoot()
		}
	}
	return false
}
