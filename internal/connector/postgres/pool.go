package postgres

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
)

const (
	idleTimeout = 5 * time.Minute
	// closeTimeout bounds how long Close waits for connections in use, after it
	// has cancelled their queries.
	closeTimeout = 20 * time.Second
)

// pool holds the connections of one database. The one given back last is taken first,
// so that those not needed grow old and go.
type pool struct {
	cfg    *config
	slots  chan struct{}   // one token per connection in use; idle ones are used first
	life   context.Context // ends with close
	cancel context.CancelFunc

	mu     sync.Mutex
	idle   []*conn
	closed bool
	reaper *time.Timer // set while there are idle connections
	// sweeper runs while there are idle connections with a past.
	sweeper  *time.Timer
	sweeping bool
	busy     sync.WaitGroup // tokens taken
}

func newPool(cfg *config) *pool {
	p := &pool{cfg: cfg, slots: make(chan struct{}, cfg.maxConns)}
	p.sweeper = time.AfterFunc(time.Hour, p.sweep)
	p.sweeper.Stop()
	p.life, p.cancel = context.WithCancel(context.Background())
	return p
}

// acquire returns a connection for one query of a user, waiting if all are in use. ""
// is a user who is never the same as the one before. dialled is how long it took to make
// it, 0 for a pooled one. The caller gives it back with release or discard.
func (p *pool) acquire(ctx context.Context, user string) (c *conn, dialled time.Duration, err error) {
	if err := p.enter(ctx); err != nil {
		return nil, 0, err
	}
	now := time.Now()
	for c := p.pop(user, now); c != nil; c = p.pop(user, now) {
		if c.ready() {
			c.unclean = !c.suits(user, now)
			return c, 0, nil
		}
		c.kill()
	}
	start := time.Now()
	session, err := p.cfg.dial(ctx, noSteps)
	if err != nil {
		p.leave()
		return nil, 0, err
	}
	return newConn(p, session), time.Since(start), nil
}

// enter takes a token.
func (p *pool) enter(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return p.errClosed()
	}
	p.busy.Add(1)
	p.mu.Unlock()
	select {
	case p.slots <- struct{}{}:
		return nil
	default:
	}
	select {
	case p.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		p.busy.Done()
		err := p.cfg.interrupted(ctx, errs.StepConnect, "wait for a connection to "+p.cfg.host)
		return err.WithHint("all %d connections of this member to the data source are in use", p.cfg.maxConns)
	case <-p.life.Done():
		p.busy.Done()
		return p.errClosed()
	}
}

func (p *pool) leave() {
	<-p.slots
	p.busy.Done()
}

func (p *pool) errClosed() error {
	return errs.New(errs.Unavailable, "%s is closed", p.cfg.object).WithStep(errs.StepConnect).On(p.cfg.object, "")
}

// pop takes out the connection given back last of those that suit the user, or else
// of all.
func (p *pool) pop(user string, now time.Time) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return nil
	}
	at := last
	for at >= 0 && !p.idle[at].suits(user, now) {
		at--
	}
	if at < 0 {
		at = last
	}
	c := p.idle[at]
	p.idle = slices.Delete(p.idle, at, at+1)
	return c
}

// release gives a connection back whose session is being reset, or has a past.
func (p *pool) release(c *conn) {
	c.in.rest()
	c.idleSince = time.Now()
	p.mu.Lock()
	keep := !p.closed
	if keep {
		p.idle = append(p.idle, c)
		if p.reaper == nil {
			p.reaper = time.AfterFunc(idleTimeout, p.reap)
		}
		if !c.past.IsZero() && !p.sweeping {
			p.sweeping = true
			p.sweeper.Reset(maxPast)
		}
	}
	p.mu.Unlock()
	if !keep {
		c.kill()
	}
	p.leave()
}

// discard ends a connection whose query may still run: it asks the server to cancel
// it, in the background, and keeps the token until that is done.
func (p *pool) discard(c *conn) {
	go func() {
		defer p.leave()
		c.abort()
	}()
}

// reap ends the connections that have been idle for long: the oldest come first.
func (p *pool) reap() {
	p.mu.Lock()
	p.reaper = nil
	n, limit := 0, time.Now().Add(-idleTimeout)
	for n < len(p.idle) && !p.idle[n].idleSince.After(limit) {
		n++
	}
	old := append([]*conn(nil), p.idle[:n]...)
	p.idle = append(p.idle[:0], p.idle[n:]...)
	if len(p.idle) > 0 && !p.closed {
		p.reaper = time.AfterFunc(time.Until(p.idle[0].idleSince.Add(idleTimeout)), p.reap)
	}
	p.mu.Unlock()
	for _, c := range old {
		c.kill()
	}
}

// sweep has the sessions reset that have been idle with a past for long enough. It
// writes a few bytes to connections on which nothing else is under way, so it may do
// that under the lock.
func (p *pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sweeping = false; p.closed {
		return
	}
	now, next := time.Now(), time.Duration(0)
	for _, c := range p.idle {
		if c.past.IsZero() {
			continue
		}
		if left := maxPast - now.Sub(c.idleSince); left > 0 {
			if next == 0 || left < next {
				next = left
			}
			continue
		}
		c.beginReset()
	}
	if next > 0 {
		p.sweeping = true
		p.sweeper.Reset(next)
	}
}

// close cancels what runs, ends every connection and waits until they are gone.
func (p *pool) close() error {
	p.mu.Lock()
	p.closed = true
	idle := p.idle
	p.idle = nil
	if p.reaper != nil {
		p.reaper.Stop()
		p.reaper = nil
	}
	p.sweeper.Stop()
	p.mu.Unlock()
	p.cancel()
	for _, c := range idle {
		c.kill()
	}
	gone := make(chan struct{})
	go func() { p.busy.Wait(); close(gone) }()
	select {
	case <-gone:
		return nil
	case <-time.After(closeTimeout):
		return errs.New(errs.Timeout, "%s: connections are still in use %v after closing", p.cfg.object, closeTimeout)
	}
}
