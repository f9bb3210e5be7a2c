// Package oci runs members with an OCI runtime such as runc.
//
// It owns everything under its run directory (root file system, bundles, the runtime's
// state), the cgroups /sluice-<instance> and whatever runs in them. It does not own
// network namespaces: a sandbox is started in one that exists. Everything that it knows
// is on the machine, so that a new process finds, watches and ends what an earlier one
// started, however that one ended. The host is its only caller.
package oci

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// Options of New.
type Options struct {
	Runtime     string   // the OCI runtime's program. Default: runc
	RuntimeArgs []string // its global arguments. Optional
	// Instance tells installations on one machine apart; it names the cgroups. Required.
	Instance string
	// Dir is the run directory, absolute. Users other than root must be able to traverse
	// its parents, as the sandboxes' mapped users read the root file system in it. Required.
	Dir     string
	Program string        // path of the static sluice-gateway binary. Required
	CACerts string        // Default: /etc/ssl/certs/ca-certificates.crt
	Grace   time.Duration // from SIGTERM to SIGKILL. Default: 10 s
	Logger  *slog.Logger  // Default: none
}

// How long steps may take that depend on the kernel or the runtime alone.
const (
	startTimeout  = 30 * time.Second
	deleteTimeout = 15 * time.Second
	killTimeout   = 10 * time.Second
)

// Runtime implements sandbox.Runtime.
type Runtime struct {
	opts   Options
	log    *slog.Logger
	rootfs *rootfs
	exits  chan string

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu      sync.Mutex
	watches map[string]*watch
	blanks  map[string]*os.File // the boot pipes of those that this process prepared
}

var (
	_ sandbox.Runtime  = (*Runtime)(nil)
	_ sandbox.Preparer = (*Runtime)(nil)
	_ sandbox.Imager   = (*Runtime)(nil)
)

var (
	validInstance = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	validID       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
)

// New returns a Runtime. It makes nothing on the machine. On kernels before 6.15 this process
// becomes the parent of its descendants' orphans, and reaps those of the Runtime.
func New(o Options) (*Runtime, error) {
	if o.Runtime == "" {
		o.Runtime = "runc"
	}
	if o.CACerts == "" {
		o.CACerts = "/etc/ssl/certs/ca-certificates.crt"
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case !validInstance.MatchString(o.Instance):
		return nil, errs.New(errs.Invalid, "oci: the instance %q is not a name of letters, digits, - and _", o.Instance)
	case !filepath.IsAbs(o.Dir) || filepath.Clean(o.Dir) == "/": // CleanUp removes it
		return nil, errs.New(errs.Invalid, "oci: the run directory %q is not an absolute path below /", o.Dir)
	case o.Program == "":
		return nil, errs.New(errs.Invalid, "oci: no gateway program is given")
	}
	if err := adoptOrphans(); err != nil {
		return nil, errs.New(errs.Internal, "oci: becoming the parent of members: %w", err)
	}
	o.Dir = filepath.Clean(o.Dir)
	r := &Runtime{
		opts: o, log: o.Logger,
		rootfs: &rootfs{dir: filepath.Join(o.Dir, "rootfs"), program: o.Program, caCerts: o.CACerts},
		exits:  make(chan string), watches: map[string]*watch{}, blanks: map[string]*os.File{},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Start implements sandbox.Runtime.
func (r *Runtime) Start(ctx context.Context, spec sandbox.Spec) error {
	if err := r.checkSpec(spec); err != nil {
		return err
	}
	if p := r.ready(spec.ID); p != nil {
		r.watch(spec.ID, p)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// What an interrupted start, or a sandbox that ended, left behind goes first.
	r.unwatch(spec.ID)
	if r.exists(spec.ID) {
		if err := r.remove(ctx, spec.ID); err != nil {
			return err
		}
	}
	p, err := r.start(ctx, spec)
	if err != nil {
		return r.undo(ctx, spec.ID, err)
	}
	r.watch(spec.ID, p)
	return nil
}

// undo removes what a failed start made, even if the caller has gone away.
func (r *Runtime) undo(ctx context.Context, id string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout+killTimeout)
	defer cancel()
	if err := r.remove(ctx, id); err != nil {
		r.log.Error("a failed start left something behind", "sandbox", id, "error", err)
	}
	return cause
}

func (r *Runtime) checkSpec(spec sandbox.Spec) error {
	switch {
	case !validID.MatchString(spec.ID):
		return errs.New(errs.Invalid, "sandbox %q: the ID is not a name of letters, digits, '.', '-' and '_'", spec.ID)
	case spec.Size.CPUs <= 0 || spec.Size.MemoryMiB <= 0:
		return errs.New(errs.Invalid, "sandbox %s: the size %+v has zero fields", spec.ID, spec.Size)
	}
	if _, err := os.Stat(spec.NetNS); err != nil {
		return errs.New(errs.NotFound, "start sandbox %s: its network namespace is missing: %w", spec.ID, err)
	}
	return r.Check()
}

// Stop implements sandbox.Runtime.
func (r *Runtime) Stop(ctx context.Context, id string) error {
	if !validID.MatchString(id) {
		return nil // nothing of that name was ever started
	}
	r.unwatch(id)
	if boot := r.takeBlank(id); boot != nil {
		boot.Close() // nothing was written to it
	}
	if !r.exists(id) {
		return nil
	}
	if p := r.find(id); p != nil {
		p.end(ctx, r.opts.Grace)
		p.reap()
		p.close()
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	return r.remove(ctx, id)
}

// List implements sandbox.Runtime. A sandbox whose start was interrupted is listed as
// one that is not running.
func (r *Runtime) List(ctx context.Context) ([]sandbox.State, error) {
	ids, err := r.ids()
	if err != nil {
		return nil, err
	}
	states := make([]sandbox.State, 0, len(ids))
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if r.exists(id) { // else it was adopted, or is gone, since
			states = append(states, r.state(id))
		}
	}
	return states, nil
}

func (r *Runtime) state(id string) sandbox.State {
	b := r.bundle(id)
	rec := b.record()
	if rec.blank(id) {
		return r.blankState(id)
	}
	st := sandbox.State{ID: id, Labels: rec.Labels, Image: rec.RootFS}
	if p := r.ready(id); p != nil {
		st.Running, st.PID = true, p.pid
		r.watch(id, p)
		if err := trimLog(b.log()); err != nil {
			r.log.Warn("a member's log can't be trimmed", "sandbox", id, "error", err)
		}
		return st
	}
	st.Exit = r.exitOf(id, b, rec)
	return st
}

// Exits implements sandbox.Runtime.
func (r *Runtime) Exits() <-chan string { return r.exits }

// Close implements sandbox.Runtime.
func (r *Runtime) Close() error {
	r.cancel()
	r.mu.Lock()
	watches, blanks := r.watches, r.blanks
	r.watches, r.blanks = map[string]*watch{}, map[string]*os.File{}
	r.mu.Unlock()
	for _, boot := range blanks {
		boot.Close() // nothing was written to it
	}
	for _, w := range watches {
		w.end()
	}
	return nil
}

// CleanUp implements sandbox.Runtime.
func (r *Runtime) CleanUp(ctx context.Context) error {
	// A runtime that a dead process started may still be at work: it must not make
	// anything new while the rest is removed.
	if err := r.killRuntimes(ctx, ""); err != nil {
		return err
	}
	ids, err := r.ids()
	if err != nil {
		return err
	}
	if err := r.stopAll(ctx, ids); err != nil {
		return err
	}
	cg, err := findCgroups()
	if err != nil {
		return err
	}
	if err := cg.remove(ctx, r.cgroup("")); err != nil {
		return err
	}
	if err := os.RemoveAll(r.opts.Dir); err != nil {
		return errs.New(errs.Internal, "remove the run directory: %w", err)
	}
	return nil
}

func (r *Runtime) stopAll(ctx context.Context, ids []string) error {
	slots := make(chan struct{}, 4)
	failed := make(chan error, len(ids))
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			failed <- r.Stop(ctx, id)
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

// cgroup is the path of a container's cgroup, or of all containers', below each hierarchy's root.
func (r *Runtime) cgroup(container string) string {
	return filepath.Join("/sluice-"+r.opts.Instance, container)
}

// container is what the runtime and the cgroups call a sandbox.
func (r *Runtime) container(id string) string {
	return cmp.Or(r.bundle(id).record().Container, id)
}

func (r *Runtime) runtimeRoot() string { return filepath.Join(r.opts.Dir, "runtime") }

// ids lists whatever has a bundle, and whatever has a record of the runtime's or a
// cgroup and belongs to no bundle. A crash can leave any of these without the others.
func (r *Runtime) ids() ([]string, error) {
	ids, err := subdirectories(r.bundles())
	if err != nil {
		return nil, err
	}
	cg, err := findCgroups()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, id := range ids {
		seen[id] = true
	}
	for _, dir := range append(cg.paths(r.cgroup("")), r.runtimeRoot()) {
		containers, err := subdirectories(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range containers {
			if !seen[name] && !r.adopted(name) {
				ids = append(ids, name)
			}
			seen[name] = true
		}
	}
	return ids, nil
}

func subdirectories(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return nil, errs.New(errs.Internal, "list sandboxes: %w", err)
	}
	for _, e := range entries {
		if name := e.Name(); e.IsDir() && !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	return names, nil
}

func (r *Runtime) exists(id string) bool {
	if _, err := os.Lstat(string(r.bundle(id))); err == nil {
		return true
	}
	paths := r.records(id)
	if cg, err := findCgroups(); err == nil {
		paths = append(paths, cg.paths(r.cgroup(id))...)
	}
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil {
			return !r.adopted(id)
		}
	}
	return false
}

// records lists what the runtime keeps of a container in its state directory.
func (r *Runtime) records(container string) []string {
	// runc and crun make a directory, runsc files that begin with the ID.
	files, err := filepath.Glob(filepath.Join(r.runtimeRoot(), container+"_sandbox:*"))
	if err != nil {
		files = nil // the pattern is constant but for a checked ID
	}
	return append(files, filepath.Join(r.runtimeRoot(), container))
}

// remove takes away everything of a sandbox, whatever state it is in; the bundle last,
// so that an interrupted removal is still listed.
func (r *Runtime) remove(ctx context.Context, id string) error {
	container := r.container(id)
	if !r.bundle(id).booted() {
		// The start was interrupted: its runtime may be at work still.
		if err := r.killRuntimes(ctx, container); err != nil {
			return err
		}
	}
	cg, err := findCgroups()
	if err != nil {
		return err
	}
	if err := cg.kill(ctx, r.cgroup(container)); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	r.deleteRecord(ctx, id, container)
	if err := cg.remove(ctx, r.cgroup(container)); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	for _, path := range append(r.records(container), string(r.bundle(id))) {
		if err := os.RemoveAll(path); err != nil {
			return errs.New(errs.Internal, "stop sandbox %s: %w", id, err)
		}
	}
	if err := r.rootfs.prune(r.inUse); err != nil {
		r.log.Warn("an old root file system stays", "error", err)
	}
	return nil
}

// Usage implements sandbox.Runtime. Memory leaves out file pages that the kernel can
// drop; the peak, as the kernel counts it, has them.
func (r *Runtime) Usage(ctx context.Context, id string) (sandbox.Usage, error) {
	cg, err := findCgroups()
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return sandbox.Usage{}, err
	}
	u, err := cg.usage(r.cgroup(r.container(id)))
	if os.IsNotExist(err) {
		return u, errs.New(errs.NotFound, "sandbox %s does not run", id)
	}
	return u, err
}
