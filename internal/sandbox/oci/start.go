package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// bootTimeout is how long a member may take from its start to reading its boot data.
const bootTimeout = 10 * time.Second

// Check reports whether sandboxes can be started on this machine: as whom, and with what.
func (r *Runtime) Check() error {
	if os.Geteuid() != 0 {
		return errs.New(errs.Denied, "starting members needs root: namespaces and cgroups are made for them").
			WithHint("run it as root, for instance with sudo")
	}
	if _, err := exec.LookPath(r.opts.Runtime); err != nil {
		e := errs.New(errs.Unavailable, "the OCI runtime %q is missing: %w", r.opts.Runtime, err)
		return e.WithHint("apt-get install %s", filepath.Base(r.opts.Runtime))
	}
	return nil
}

// start makes a sandbox and returns its process. What it made stays if it fails.
func (r *Runtime) start(ctx context.Context, spec sandbox.Spec) (*proc, error) {
	p, boot, err := r.launch(ctx, spec, record{Labels: spec.Labels, Size: spec.Size})
	if err != nil {
		return nil, err
	}
	defer boot.Close()
	if err := r.handOver(ctx, spec, boot); err != nil {
		p.reap()
		p.close()
		return nil, err
	}
	return p, nil
}

// launch starts the program. The boot data goes into the pipe that it returns.
func (r *Runtime) launch(ctx context.Context, spec sandbox.Spec, rec record) (p *proc, boot *os.File, err error) {
	b, err := r.prepare(spec, rec)
	if err != nil {
		return nil, nil, r.startError(spec.ID, err)
	}
	reader, boot, err := os.Pipe()
	if err != nil {
		return nil, nil, r.startError(spec.ID, err)
	}
	defer func() {
		if err != nil {
			boot.Close()
		}
	}()
	err = r.run(ctx, spec.ID, b, reader)
	reader.Close() // the sandbox has its own copy
	if err != nil {
		return nil, nil, r.startError(spec.ID, err)
	}
	if p = r.find(spec.ID); p == nil {
		return nil, nil, r.endedAtOnce(spec.ID, b)
	}
	if !p.waitExec(ctx) {
		p.reap()
		p.close()
		return nil, nil, r.endedAtOnce(spec.ID, b)
	}
	return p, boot, nil
}

// handOver writes the boot data. It goes only to a process that is being watched: a
// sandbox whose host died before this point reads an empty pipe and ends by itself, and
// until then counts as one whose start was interrupted.
func (r *Runtime) handOver(ctx context.Context, spec sandbox.Spec, boot *os.File) error {
	b := r.bundle(spec.ID)
	err := writeBoot(ctx, boot, spec.Boot)
	if err == nil {
		err = b.markBooted()
	}
	if errors.Is(err, unix.EPIPE) {
		return r.endedAtOnce(spec.ID, b)
	}
	if err != nil {
		return r.startError(spec.ID, fmt.Errorf("handing over its boot data: %w", err))
	}
	return nil
}

func (r *Runtime) prepare(spec sandbox.Spec, rec record) (bundle, error) {
	if err := r.makeDir(); err != nil {
		return "", err
	}
	name, release, err := r.rootfs.acquire()
	if err != nil {
		return "", err
	}
	defer release()
	b := r.bundle(spec.ID)
	config := buildSpec(spec, r.rootfs.path(name), r.cgroup(spec.ID))
	rec.RootFS = name
	return b, b.create(rec, config)
}

// makeDir makes the run directory and sees to it that mapped users can pass through.
func (r *Runtime) makeDir() error {
	if err := os.MkdirAll(filepath.Join(r.opts.Dir, "rootfs"), 0o711); err != nil {
		return err
	}
	for _, d := range []string{r.opts.Dir, filepath.Join(r.opts.Dir, "rootfs")} {
		if err := os.Chmod(d, 0o711); err != nil { // whatever the umask
			return err
		}
	}
	for d := filepath.Dir(r.opts.Dir); ; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			return err
		}
		if fi.Mode().Perm()&0o001 == 0 {
			return errs.New(errs.Invalid, "the run directory %s can't be used: %s (mode %v) keeps members' users out",
				r.opts.Dir, d, fi.Mode().Perm()).WithHint("chmod o+x %s, or choose another run directory", d)
		}
		if d == "/" {
			return nil
		}
	}
}

func writeBoot(ctx context.Context, w *os.File, boot []byte) error {
	if err := w.SetWriteDeadline(time.Now().Add(bootTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.SetWriteDeadline(time.Unix(1, 0)) }) // it just worked
	defer stop()
	_, err := w.Write(boot)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// run has the runtime create and start the sandbox. It returns when the program runs.
func (r *Runtime) run(ctx context.Context, id string, b bundle, boot *os.File) error {
	log, err := b.openLog()
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := r.command(ctx, b, "run", "--detach", "--preserve-fds", "1",
		"--bundle", string(b), "--pid-file", b.pidFile(), id)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{boot}
	err = cmd.Run()
	if cmd.Process != nil {
		reapGroup(cmd.Process.Pid)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return errors.New(b.runtimeMessage(err))
	}
	return nil
}

// command prepares a call of the runtime for one container, which is the last argument.
func (r *Runtime) command(ctx context.Context, b bundle, verb string, args ...string) *exec.Cmd {
	all := append([]string{}, r.opts.RuntimeArgs...)
	all = append(all, "--root", r.runtimeRoot(), "--log", b.toolLog(), "--log-format", "json", verb)
	cmd := exec.CommandContext(ctx, r.opts.Runtime, append(all, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	// Ctrl-C on the host's terminal is for the host alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// runtimeMessage finds the runtime's own reason for a failure.
func (b bundle) runtimeMessage(err error) string {
	raw, readErr := os.ReadFile(b.toolLog())
	if readErr == nil {
		if msg := lastError(raw); msg != "" {
			return msg
		}
	}
	if tail := lastLines(b.logTail(), 1); tail != "" {
		return tail
	}
	return err.Error()
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// lastError returns the last error in a runtime's JSON log.
func lastError(log []byte) (msg string) {
	for line := range bytes.Lines(log) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			msg = entry.Msg
		}
	}
	return msg
}

func (r *Runtime) endedAtOnce(id string, b bundle) error {
	reason := "it wrote nothing"
	if tail := lastLines(b.logTail(), 5); tail != "" {
		reason = "it wrote: " + tail
	}
	return errs.New(errs.Unavailable, "start sandbox %s: the member ended before it read its boot data; %s", id, reason).
		WithHint("check that %s is a static binary for this machine", r.opts.Program)
}

// startError names the sandbox and adds what can be done about well-known causes.
func (r *Runtime) startError(id string, err error) error {
	if ctxErr := errs.ClassOf(err); ctxErr == errs.Timeout || ctxErr == errs.Cancelled {
		return fmt.Errorf("start sandbox %s: %w", id, err)
	}
	known := errs.As(err)
	class, hint := known.Class, known.Hint
	if errors.Is(err, unix.ENOSPC) {
		class, hint = errs.StorageFull, "make room on the file system of "+r.opts.Dir
	} else if class == errs.Internal {
		class, hint = errs.Unavailable, r.hint(err.Error())
	}
	return errs.New(class, "start sandbox %s: %w", id, err).WithHint("%s", hint)
}

func (r *Runtime) hint(message string) string {
	for _, known := range []struct{ text, hint string }{
		{"max_user_namespaces", "allow user namespaces: sysctl user.max_user_namespaces=10000"},
		{"unshare", "allow user namespaces: sysctl user.max_user_namespaces=10000"},
		{"cgroup", "check that the cpu, memory and pids cgroup controllers are mounted and writable"},
		{"exec format error", r.opts.Program + " must be a static binary for this machine"},
		{"no such file or directory", r.opts.Program + " must be a static binary for this machine"},
	} {
		if strings.Contains(message, known.text) {
			return known.hint
		}
	}
	return "see whether " + r.opts.Runtime + " works on this machine"
}

// deleteRecord has the runtime forget a sandbox's container. It may not know it, or its record may
// be corrupt; what it leaves is removed by the caller.
func (r *Runtime) deleteRecord(ctx context.Context, id, container string) {
	known := false
	for _, path := range r.records(container) {
		if _, err := os.Lstat(path); err == nil {
			known = true
		}
	}
	if !known || os.MkdirAll(string(r.bundle(id)), 0o700) != nil { // it logs into the bundle
		return
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	if out, err := r.command(ctx, r.bundle(id), "delete", "--force", container).CombinedOutput(); err != nil {
		r.log.Debug("the runtime can't delete a sandbox; its files are removed", "sandbox", id,
			"error", err, "output", strings.TrimSpace(string(out)))
	}
}
