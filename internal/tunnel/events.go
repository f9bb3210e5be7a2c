package tunnel

import "sync"

// events runs callbacks one at a time, in order, off the goroutines that cause them.
type events struct {
	mu     sync.Mutex
	queue  []func()
	wake   chan struct{}
	closed bool
	done   chan struct{}
}

func newEvents() *events {
	e := &events{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go e.run()
	return e
}

// add queues f. It never blocks; the queue is as long as callbacks are slow.
func (e *events) add(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.queue = append(e.queue, f)
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *events) run() {
	defer close(e.done)
	for range e.wake {
		for {
			f, more := e.next()
			if !more {
				break
			}
			f()
		}
	}
}

func (e *events) next() (func(), bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) == 0 {
		return nil, false
	}
	f := e.queue[0]
	e.queue = e.queue[1:]
	return f, true
}

// close runs what is queued and waits for it. It must not be called from a callback.
func (e *events) close() {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		close(e.wake)
	}
	e.mu.Unlock()
	<-e.done
}
