package splice

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// share is what a flow may move before others get their turn.
	share = 1 << 20
	// A flow that moves burst bytes within burstTime is paced from then on, until a
	// tick brings less than lull.
	burst     = 256 << 10
	burstTime = 4 * time.Millisecond
	lull      = 16 << 10
)

// pair is two connections that are joined.
type pair struct {
	l     *loop
	id    uint64
	label string
	ends  [2]*end
	flows [2]*flow // 0: from a to b
	over  func(*pair, error)
	dead  bool
}

// end is one of the connections.
type end struct {
	p       *pair
	side    int
	fd      int
	at      int32 // slot
	mask    uint32
	watched bool
	hung    bool // both its directions are shut, which the kernel reports again and again
}

// flow is one direction.
type flow struct {
	p        *pair
	src, dst *end
	moved    int64
	q        *pipe // nil: empty
	held     int   // bytes in q
	stuck    bool  // dst takes no more
	ended    bool  // src has sent its end
	passed   bool  // dst was told
	paced    bool
	since    time.Time // of the count of burst
	count    int
}

// join makes a pair of two descriptors, which are its own from now on.
func join(l *loop, id uint64, label string, fds [2]int, over func(*pair, error)) (*pair, error) {
	p := &pair{l: l, id: id, label: label, over: over}
	for side, fd := range fds {
		p.ends[side] = &end{p: p, side: side, fd: fd}
	}
	p.flows[0] = &flow{p: p, src: p.ends[0], dst: p.ends[1]}
	p.flows[1] = &flow{p: p, src: p.ends[1], dst: p.ends[0]}
	for _, e := range p.ends {
		if err := e.await(); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// ready implements watcher.
func (e *end) ready(events uint32) {
	p := e.p
	if events&unix.EPOLLERR != 0 {
		p.fail(pendingError(e.fd))
		return
	}
	e.hung = events&unix.EPOLLHUP != 0
	if in := p.flows[e.side]; events&(unix.EPOLLIN|unix.EPOLLHUP) != 0 && !in.ended && !in.stuck {
		in.pump()
	}
	if out := p.flows[1-e.side]; events&unix.EPOLLOUT != 0 && out.stuck {
		out.stuck = false
		out.pump()
	}
	p.settle()
}

// beat implements the turn of a paced flow.
func (f *flow) beat() {
	before := f.moved
	if !f.stuck && !f.ended {
		f.pump()
	}
	if f.moved-before < lull {
		f.paced, f.count = false, 0
		delete(f.p.l.paced, f)
	} else if f.moved-before >= share {
		f.p.l.due = f.p.l.now // there is more
	}
	f.p.settle()
}

// pump moves what there is, up to a share.
func (f *flow) pump() {
	for left, more := share, true; left > 0 && !f.p.dead; {
		if f.held == 0 {
			n, some := f.take()
			if !some {
				break
			}
			left -= n
			more = n == f.q.size // else src is empty, or epoll says so
		}
		if !f.give() || !more {
			break
		}
	}
	if f.held == 0 && f.q != nil {
		f.p.l.pipes.put(f.q, true)
		f.q = nil
	}
}

// take fills the empty pipe. It reports whether there was something, or the end.
func (f *flow) take() (n int, more bool) {
	if f.ended {
		return 0, false
	}
	if f.q == nil {
		q, err := f.p.l.pipes.take()
		if err != nil {
			f.p.fail(err)
			return 0, false
		}
		f.q = q
	}
	n, err := f.p.l.move(f.src.fd, f.q.w, f.q.size)
	switch {
	case err == unix.EAGAIN:
		return 0, false
	case err != nil:
		f.p.fail(err)
		return 0, false
	case n == 0:
		f.ended = true
		return 0, false
	}
	f.held = n
	f.note(n)
	return n, true
}

// note counts what came, and paces a flow that is long.
func (f *flow) note(n int) {
	if now := f.p.l.now; now.Sub(f.since) > burstTime {
		f.since, f.count = now, 0
	}
	if f.count += n; f.count >= burst && !f.paced {
		f.paced = true
		f.p.l.pace(f)
	}
}

// give empties the pipe, and reports whether it is empty.
func (f *flow) give() bool {
	for f.held > 0 {
		n, err := f.p.l.move(f.q.r, f.dst.fd, f.held)
		if err == unix.EAGAIN {
			f.stuck = true
			return false
		}
		if err != nil {
			f.p.fail(err)
			return false
		}
		f.held -= n
		f.moved += int64(n)
	}
	return true
}

// settle passes on ends, ends the pair if both directions are over, and otherwise
// waits for what is needed next.
func (p *pair) settle() {
	if p.dead {
		return
	}
	for _, f := range p.flows {
		if f.ended && f.held == 0 && !f.passed {
			if err := unix.Shutdown(f.dst.fd, unix.SHUT_WR); err != nil {
				p.fail(err)
				return
			}
			f.passed = true
		}
	}
	if p.flows[0].passed && p.flows[1].passed {
		p.finish(nil)
		return
	}
	for _, e := range p.ends {
		if err := e.await(); err != nil {
			p.fail(err)
			return
		}
	}
}

// await tells the kernel what to wait for at this end. Errors come in any case, except
// at one that is shut both ways while nothing can be done about it.
func (e *end) await() error {
	in, out := e.p.flows[e.side], e.p.flows[1-e.side]
	var mask uint32
	if !in.ended && !in.stuck && !in.paced {
		mask |= unix.EPOLLIN
	}
	if out.stuck {
		mask |= unix.EPOLLOUT
	}
	l := e.p.l
	switch {
	case mask == 0 && (e.hung || in.ended && out.passed):
		if e.watched {
			l.forget(e.fd, e.at)
			e.watched = false
		}
		return nil
	case !e.watched:
		at, err := l.watch(e.fd, mask, e)
		if err != nil {
			return err
		}
		e.at, e.mask, e.watched = at, mask, true
		return nil
	case mask == e.mask:
		return nil
	}
	e.mask = mask
	return l.change(e.fd, e.at, mask)
}

// fail breaks both connections at once: each peer sees a reset, not an end that it
// could take for the whole.
func (p *pair) fail(err error) {
	if p.dead {
		return
	}
	for _, e := range p.ends {
		// An error means that the connection is gone, which is the aim.
		_ = unix.SetsockoptLinger(e.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	p.finish(err)
}

func (p *pair) finish(err error) {
	p.close()
	p.over(p, err)
}

// close gives back everything that the pair holds.
func (p *pair) close() {
	p.dead = true
	for _, e := range p.ends {
		if e.watched {
			p.l.forget(e.fd, e.at)
			e.watched = false
		}
		_ = unix.Close(e.fd)
	}
	for _, f := range p.flows {
		delete(p.l.paced, f)
		if f.q != nil {
			p.l.pipes.put(f.q, f.held == 0)
			f.q = nil
		}
	}
}

// pendingError returns, and clears, the error that a socket holds.
func pendingError(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code == 0 {
		return unix.ECONNRESET
	}
	return syscall.Errno(code)
}

// errnoOf is an error as it goes to the host.
func errnoOf(err error) syscall.Errno {
	var code syscall.Errno
	if err != nil && !errors.As(err, &code) {
		code = unix.EIO
	}
	return code
}
