package tunnel

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// shrinkAfter is over how many heartbeats surplus parked connections must have been
// idle before they are given up.
const shrinkAfter = 12

// member is what the hub knows of one generation of a member: its control connection
// and its pool of data connections.
type member struct {
	hub   *Hub
	key   memberKey
	holds int // guarded by hub.mu: handlers that use it

	mu       sync.Mutex
	up       bool
	suspect  bool        // nothing is heard of it although it is up
	silence  *time.Timer // makes it suspect; nil before there is a control connection
	stopped  bool        // for good: the hub is closing
	draining bool
	control  *control
	back     chan struct{} // while the control connection is lost: closed when that is over
	conns    map[*dataConn]struct{}
	idle     []*dataConn    // the one used last is taken first
	waiters  []chan<- grant // the one that came first is served first
	base     int            // what the member parks when nothing is running
	target   int            // how many data connections the member was told to keep
	minIdle  int            // the least idle since the last look, and how many heartbeats ago that was
	looks    int
}

// grant is what a waiting request gets: a connection, or the reason why there is none.
type grant struct {
	conn *dataConn
	err  error
}

func newMember(h *Hub, key memberKey) *member {
	return &member{hub: h, key: key, conns: map[*dataConn]struct{}{}}
}

func (m *member) isUp() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.up
}

// attach makes c the member's control connection, in place of one that the service
// has not yet seen to be dead.
func (m *member) attach(c *control, hello message) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return false
	}
	if m.control != nil {
		m.control.abort()
	}
	m.control = c
	m.over()
	m.base = min(max(hello.Parked, 1), m.hub.opts.MaxData)
	m.target = max(m.target, m.base)
	m.minIdle, m.looks = len(m.idle), 0
	c.onBeat = func() { m.look(c) }
	c.onHeard = func() { m.heard(c) }
	m.listen(c)
	c.post(message{
		Type: msgWelcome, Data: m.target,
		EveryMS: c.every.Milliseconds(), TimeoutMS: c.timeout.Milliseconds(),
	})
	if m.draining { // and lost the connection meanwhile
		c.post(message{Type: msgDrain})
	}
	if !m.up {
		m.up = true
		m.hub.opts.Logger.Info("member up", "member", m.key.id, "generation", m.key.generation, "version", hello.Version)
		m.hub.events.add(func() { m.hub.opts.OnUp(m.key.id, m.key.generation) })
	}
	return true
}

// over ends the wait for a lost control connection. It needs m.mu.
func (m *member) over() {
	if m.back != nil {
		close(m.back)
		m.back = nil
	}
}

// heard notes that the member said something on its control connection.
func (m *member) heard(c *control) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.control == c {
		m.listen(c)
	}
}

// listen begins to wait for the next message on c. It needs m.mu.
func (m *member) listen(c *control) {
	m.setSuspect(false)
	if m.silence != nil {
		m.silence.Stop()
	}
	var this *time.Timer
	this = time.AfterFunc(late(c.every), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.silence == this && m.control == c {
			m.setSuspect(true)
		}
	})
	m.silence = this
}

// setSuspect tells a change. It needs m.mu.
func (m *member) setSuspect(silent bool) {
	if !m.up || m.suspect == silent {
		return
	}
	m.suspect = silent
	m.hub.events.add(func() { m.hub.opts.OnSuspect(m.key.id, m.key.generation, silent) })
}

// detach waits, after the control connection c was lost, until another has come or the
// grace is over; then the member is down.
func (m *member) detach(ctx context.Context, c *control, reason error) {
	m.mu.Lock()
	if m.control != c {
		m.mu.Unlock()
		return
	}
	m.control = nil
	m.setSuspect(!m.draining && ctx.Err() == nil)
	back := make(chan struct{})
	m.back = back
	grace := m.hub.opts.Grace
	if m.draining {
		grace, reason = 0, ErrDrained
	}
	m.mu.Unlock()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-back:
		return
	case <-timer.C:
	case <-ctx.Done():
	}
	m.downIf(func() bool { return m.back == back }, reason)
}

// down breaks everything that the member has.
func (m *member) down(reason error) { m.downIf(func() bool { return true }, reason) }

// stop is down for good.
func (m *member) stop(reason error) {
	m.downIf(func() bool { m.stopped = true; return true }, reason)
}

// downIf is down if a condition, looked at under the lock, holds.
func (m *member) downIf(cond func() bool, reason error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !cond() {
		return
	}
	m.over()
	if m.control != nil {
		m.control.abort()
		m.control = nil
	}
	for d := range m.conns {
		d.abort()
	}
	m.idle = nil
	m.failWaiters(notConnected(m.key.id))
	if m.silence != nil {
		m.silence.Stop()
	}
	if !m.up {
		return
	}
	m.up, m.suspect = false, false
	m.hub.opts.Logger.Info("member down", "member", m.key.id, "generation", m.key.generation, "reason", reason)
	m.hub.events.add(func() { m.hub.opts.OnDown(m.key.id, m.key.generation, reason) })
}

// failWaiters needs m.mu.
func (m *member) failWaiters(err error) {
	for _, w := range m.waiters {
		w <- grant{err: err}
	}
	m.waiters = nil
}

// handle acts on what the member said.
func (m *member) handle(msg message) error {
	if msg.Type == msgDrain {
		m.drain()
		return nil
	}
	return fmt.Errorf("member %s sent a %q message that it may not send", m.key.id, msg.Type)
}

// drain takes no new requests, closes what is idle, and tells the member.
func (m *member) drain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining {
		return
	}
	m.draining = true
	if m.control != nil {
		m.control.post(message{Type: msgDrain})
	}
	m.failWaiters(m.refusal())
	for _, d := range m.idle {
		d.abort()
	}
	m.idle = nil
}

// refusal is why no request can go to the member, or nil. It needs m.mu.
func (m *member) refusal() error {
	switch {
	case !m.up:
		return notConnected(m.key.id)
	case m.draining:
		return errs.New(errs.Unavailable, "member %s is draining", m.key.id).WithStep(errs.StepTunnel)
	}
	return nil
}

// add takes a new data connection into the pool.
func (m *member) add(d *dataConn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.conns) >= m.hub.opts.MaxData {
		m.sweep()
	}
	if m.stopped || m.draining || len(m.conns) >= m.hub.opts.MaxData {
		return false
	}
	m.conns[d] = struct{}{}
	m.park(d)
	return true
}

// park gives a connection that is free to whoever waits longest, or keeps it. It needs m.mu.
func (m *member) park(d *dataConn) {
	if len(m.waiters) > 0 {
		m.waiters[0] <- grant{conn: d}
		m.waiters = m.waiters[1:]
		return
	}
	m.idle = append(m.idle, d)
}

// release gives back a connection whose answer was read to the end.
func (m *member) release(d *dataConn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining {
		d.abort()
		return
	}
	if _, open := m.conns[d]; open {
		m.park(d)
	}
}

// remove forgets a connection.
func (m *member) remove(d *dataConn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(d)
}

// sweep breaks idle connections that the member has left. It needs m.mu.
func (m *member) sweep() {
	for _, d := range slices.Clone(m.idle) {
		if !d.quiet() {
			d.abort()
			m.forget(d)
		}
	}
}

// forget needs m.mu.
func (m *member) forget(d *dataConn) {
	delete(m.conns, d)
	if i := slices.Index(m.idle, d); i >= 0 {
		m.idle = slices.Delete(m.idle, i, i+1)
	}
}
