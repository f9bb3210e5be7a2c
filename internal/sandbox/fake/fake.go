// Package fake implements sandbox.Runtime without running anything: a Machine in memory
// stands for the host's kernel and outlives the Runtimes that manage it, as sandboxes
// outlive a host process. Only tests import it.
package fake

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// Program stands for what runs in a sandbox. It returns how it ended; when ctx ends it
// was told to (SIGTERM), and what it returns then is lost.
type Program func(ctx context.Context, p *Process) sandbox.Exit

// Process is a running fake sandbox, as its Program sees it.
type Process struct {
	Spec sandbox.Spec
	// Use sets what Usage returns.
	Use func(sandbox.Usage)
}

// Idle is a Program that runs until it is told to end.
func Idle(ctx context.Context, _ *Process) sandbox.Exit {
	<-ctx.Done()
	return sandbox.Exit{Reason: "exit status 0"}
}

// Machine holds the sandboxes of one installation.
type Machine struct {
	program Program

	mu      sync.Mutex
	nextPID int
	all     map[string]*box
	fail    func(op, id string) error
	image   string
}

type box struct {
	spec   sandbox.Spec
	image  string
	pid    int
	usage  sandbox.Usage
	exit   sandbox.Exit
	forced chan sandbox.Exit
	cancel context.CancelFunc
	over   chan struct{}
	ended  bool
	owner  *Runtime // of a blank: who prepared it
}

// NewMachine returns an empty Machine whose sandboxes run program; nil means Idle.
func NewMachine(program Program) *Machine {
	if program == nil {
		program = Idle
	}
	return &Machine{program: program, image: "program-1", nextPID: 100, all: map[string]*box{}}
}

// FailWith makes operations ("start", "prepare", "adopt", "stop", "list", "usage", "image", "cleanup") fail with what f returns,
// until it is called with nil.
func (m *Machine) FailWith(f func(op, id string) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = f
}

// SetImage makes what is started from now on another program, by its name.
func (m *Machine) SetImage(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.image = name
}

func (m *Machine) failure(op, id string) error {
	m.mu.Lock()
	f := m.fail
	m.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(op, id)
}

// End ends a running sandbox by itself, as exit says, and reports whether it ran.
func (m *Machine) End(id string, exit sandbox.Exit) bool {
	b := m.running(id)
	if b == nil {
		return false
	}
	select {
	case b.forced <- exit:
	case <-b.over:
	}
	<-b.over
	return true
}

// Spec returns what a sandbox was started with.
func (m *Machine) Spec(id string) (sandbox.Spec, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.all[id]
	if !ok {
		return sandbox.Spec{}, false
	}
	return b.spec, true
}

// IDs lists the sandboxes that exist, sorted.
func (m *Machine) IDs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.all))
}

func (m *Machine) running(id string) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.all[id]; b != nil && !b.ended {
		return b
	}
	return nil
}

func (m *Machine) start(spec sandbox.Spec) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nextPID++
	return m.add(&box{spec: spec, image: m.image, pid: m.nextPID}, m.program)
}

// add makes b run program. The caller holds mu.
func (m *Machine) add(b *box, program Program) *box {
	b.spec.Labels, b.spec.Boot = maps.Clone(b.spec.Labels), slices.Clone(b.spec.Boot)
	ctx, cancel := context.WithCancel(context.Background())
	b.forced, b.cancel, b.over = make(chan sandbox.Exit), cancel, make(chan struct{})
	m.all[b.spec.ID] = b
	go m.run(ctx, b, program)
	return b
}

func (m *Machine) run(ctx context.Context, b *box, program Program) {
	own := make(chan sandbox.Exit, 1)
	p := &Process{Spec: b.spec, Use: func(u sandbox.Usage) {
		m.mu.Lock()
		defer m.mu.Unlock()
		b.usage = u
	}}
	go func() { own <- program(ctx, p) }()
	var exit sandbox.Exit
	select {
	case exit = <-own:
	case exit = <-b.forced:
		b.cancel()
		<-own
	}
	m.mu.Lock()
	b.exit, b.ended = exit, true
	m.mu.Unlock()
	close(b.over)
}

// stop ends a sandbox and forgets it.
func (m *Machine) stop(id string) {
	m.mu.Lock()
	b := m.all[id]
	m.mu.Unlock()
	if b == nil {
		return
	}
	b.cancel()
	<-b.over
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.all, id)
}

// Runtime implements sandbox.Runtime over a Machine.
type Runtime struct {
	m     *Machine
	exits chan string

	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	mu      sync.Mutex
	watches map[string]func() // ends the watch
}

var (
	_ sandbox.Runtime  = (*Runtime)(nil)
	_ sandbox.Preparer = (*Runtime)(nil)
	_ sandbox.Imager   = (*Runtime)(nil)
)

// New returns a Runtime over m. Several may stand for one host process after another.
func New(m *Machine) *Runtime {
	r := &Runtime{m: m, exits: make(chan string), watches: map[string]func(){}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Start implements sandbox.Runtime.
func (r *Runtime) Start(ctx context.Context, spec sandbox.Spec) error {
	if err := r.allowed(ctx, "start", spec.ID); err != nil {
		return err
	}
	if err := checkSpec(spec); err != nil {
		return err
	}
	b := r.m.running(spec.ID)
	if b == nil {
		r.unwatch(spec.ID)
		r.m.stop(spec.ID)
		b = r.m.start(spec)
	}
	r.watch(spec.ID, b)
	return nil
}

func checkSpec(spec sandbox.Spec) error {
	switch {
	case spec.ID == "" || strings.ContainsAny(spec.ID, "/"):
		return errs.New(errs.Invalid, "sandbox %q: bad ID", spec.ID)
	case spec.Size.CPUs <= 0 || spec.Size.MemoryMiB <= 0:
		return errs.New(errs.Invalid, "sandbox %s: the size has zero fields", spec.ID)
	case spec.NetNS == "" || strings.Contains(spec.NetNS, "no-such"):
		return errs.New(errs.NotFound, "sandbox %s: the network namespace %q is missing", spec.ID, spec.NetNS)
	}
	return nil
}

func (r *Runtime) allowed(ctx context.Context, op, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.m.failure(op, id)
}

// Image implements sandbox.Imager.
func (r *Runtime) Image() (string, error) {
	if err := r.m.failure("image", ""); err != nil {
		return "", err
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return r.m.image, nil
}

// Stop implements sandbox.Runtime.
func (r *Runtime) Stop(ctx context.Context, id string) error {
	if err := r.allowed(ctx, "stop", id); err != nil {
		return err
	}
	r.unwatch(id)
	r.m.stop(id)
	return nil
}

// List implements sandbox.Runtime.
func (r *Runtime) List(ctx context.Context) ([]sandbox.State, error) {
	if err := r.allowed(ctx, "list", ""); err != nil {
		return nil, err
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	var out []sandbox.State
	for _, id := range slices.Sorted(maps.Keys(r.m.all)) {
		b := r.m.all[id]
		st := sandbox.State{ID: id, Labels: maps.Clone(b.spec.Labels), Image: b.image, Blank: b.owner != nil}
		if b.ended {
			st.Exit = b.exit
		} else {
			st.Running, st.PID = true, b.pid
			r.watch(id, b)
		}
		out = append(out, st)
	}
	return out, nil
}

// Exits implements sandbox.Runtime.
func (r *Runtime) Exits() <-chan string { return r.exits }

func (r *Runtime) watch(id string, b *box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watches[id] != nil || r.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	done := make(chan struct{})
	r.watches[id] = func() { cancel(); <-done }
	r.wg.Go(func() {
		defer close(done)
		select {
		case <-b.over:
		case <-ctx.Done():
			return
		}
		select {
		case r.exits <- id:
		case <-ctx.Done():
		}
	})
}

func (r *Runtime) unwatch(id string) {
	r.mu.Lock()
	end := r.watches[id]
	delete(r.watches, id)
	r.mu.Unlock()
	if end != nil {
		end()
	}
}

// Usage implements sandbox.Runtime.
func (r *Runtime) Usage(ctx context.Context, id string) (sandbox.Usage, error) {
	if err := r.allowed(ctx, "usage", id); err != nil {
		return sandbox.Usage{}, err
	}
	b := r.m.running(id)
	if b == nil {
		return sandbox.Usage{}, errs.New(errs.NotFound, "sandbox %s does not run", id)
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return b.usage, nil
}

// Close implements sandbox.Runtime.
func (r *Runtime) Close() error {
	r.mu.Lock()
	r.cancel() // under the lock, so that no watch begins after the wait
	r.mu.Unlock()
	r.wg.Wait()
	for _, id := range r.m.IDs() {
		if b := r.m.running(id); b != nil && b.owner == r {
			b.cancel()
			<-b.over
		}
	}
	return nil
}

// CleanUp implements sandbox.Runtime.
func (r *Runtime) CleanUp(ctx context.Context) error {
	if err := r.allowed(ctx, "cleanup", ""); err != nil {
		return err
	}
	for _, id := range r.m.IDs() {
		if err := r.Stop(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
