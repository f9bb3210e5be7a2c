package tunnel

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// take returns a data connection for one request: an idle one, or the next that comes.
// The wait is bounded by ctx and the hub's TakeTimeout.
func (m *member) take(ctx context.Context) (*dataConn, error) {
	m.mu.Lock()
	if err := m.refusal(); err != nil {
		m.mu.Unlock()
		return nil, err
	}
	if n := len(m.idle); n > 0 {
		d := m.idle[n-1]
		m.idle = m.idle[:n-1]
		m.grow()
		m.mu.Unlock()
		return d, nil
	}
	w := make(chan grant, 1)
	m.waiters = append(m.waiters, w)
	m.grow()
	m.mu.Unlock()
	return m.await(ctx, w)
}

// await waits for a grant.
func (m *member) await(ctx context.Context, w chan grant) (*dataConn, error) {
	timer := time.NewTimer(m.hub.opts.TakeTimeout)
	defer timer.Stop()
	var err error
	select {
	case g := <-w:
		return g.conn, g.err
	case <-timer.C:
		err = m.exhausted()
	case <-ctx.Done():
		err = fmt.Errorf("wait for a connection of member %s: %w", m.key.id, context.Cause(ctx))
	}
	m.withdraw(w)
	return nil, err
}

// withdraw gives up waiting; a connection that came at the same moment goes back.
func (m *member) withdraw(w chan grant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.waiters, (chan<- grant)(w)); i >= 0 {
		m.waiters = slices.Delete(m.waiters, i, i+1)
		return
	}
	if g := <-w; g.conn != nil { // it was sent under m.mu: this does not block
		m.park(g.conn)
	}
}

func (m *member) exhausted() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	busy, limit := len(m.conns)-len(m.idle), m.hub.opts.MaxData
	e := errs.New(errs.Unavailable, "member %s offered no free connection within %s: %d of at most %d are in use",
		m.key.id, m.hub.opts.TakeTimeout, busy, limit).WithStep(errs.StepTunnel)
	if busy >= limit {
		return e.WithHint("wait until other queries have ended, or add members to the gateway")
	}
	return e
}

// grow asks for more connections when the last idle one was taken, so that the next
// request seldom waits for a handshake. It needs m.mu.
func (m *member) grow() {
	m.minIdle = min(m.minIdle, len(m.idle))
	if len(m.idle) > 0 {
		return
	}
	busy := len(m.conns) // none is idle
	want := min(busy+len(m.waiters)+max(m.base/2, 1), m.hub.opts.MaxData)
	if want > m.target {
		m.setTarget(want)
	}
}

// setTarget needs m.mu.
func (m *member) setTarget(n int) {
	m.target = n
	if m.control != nil {
		m.control.post(message{Type: msgPark, Data: n})
	}
}

// look is called with each heartbeat. It gives up connections that have been surplus
// for long: first the member is told to keep fewer, and at the next heartbeat, when it
// knows, the surplus is closed.
func (m *member) look(c *control) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.control != c {
		return
	}
	m.sweep()
	if over := min(len(m.conns)-m.target, len(m.idle)); over > 0 {
		for _, d := range m.idle[:over] {
			d.abort()
		}
	}
	if m.looks++; m.looks < shrinkAfter {
		return
	}
	if surplus := m.minIdle - m.base; surplus > 0 && m.target > m.base {
		m.setTarget(max(m.target-surplus, m.base))
	}
	m.minIdle, m.looks = len(m.idle), 0
}
