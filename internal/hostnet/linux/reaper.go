package linux

import "sync"

// reaper does what is slow and nobody waits for, one thing after the other: deleting
// a veth takes 20 ms. What is being deleted is still there, and Inventory says so.
type reaper struct {
	mu      sync.Mutex
	pending map[string]chan struct{}
	last    chan struct{}
	all     sync.WaitGroup
}

func newReaper() *reaper {
	idle := make(chan struct{})
	close(idle)
	return &reaper{pending: map[string]chan struct{}{}, last: idle}
}

// later does fn after everything that was given before.
func (r *reaper) later(name string, fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, done := r.last, make(chan struct{})
	r.last, r.pending[name] = done, done
	r.all.Go(func() {
		<-before
		fn()
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.pending[name] == done {
			delete(r.pending, name)
		}
		close(done)
	})
}

// settle waits until nothing of that name is being deleted, so that it can be made anew.
func (r *reaper) settle(name string) {
	r.mu.Lock()
	done := r.pending[name]
	r.mu.Unlock()
	if done != nil {
		<-done
	}
}

// busy says that something of that name is being deleted.
func (r *reaper) busy(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pending[name] != nil
}

func (r *reaper) wait() { r.all.Wait() }
