package tunnel

import (
	"bufio"
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// dataPool keeps a member's data connections: as many workers as the service wants
// connections, each with one connection at a time, which an http.Server answers on.
type dataPool struct {
	agent    *Agent
	workers  sync.WaitGroup
	handlers sync.WaitGroup

	mu       sync.Mutex
	ctx      context.Context // of Run; nil before
	target   int
	demanded bool // the service has named the target since it welcomed the member
	running  int  // workers
	draining bool
	conns    map[*parkedConn]bool // true while a request is being answered
	lonely   bool                 // draining without the service: idle connections are ours to close
	changed  chan struct{}        // closed and replaced when a connection ends
	hurried  chan struct{}        // closed and replaced when dials should not wait
}

func newDataPool(a *Agent) *dataPool {
	return &dataPool{
		agent: a, target: 1, conns: map[*parkedConn]bool{},
		changed: make(chan struct{}), hurried: make(chan struct{}),
	}
}

func (p *dataPool) serveHTTP(w http.ResponseWriter, r *http.Request) {
	p.handlers.Add(1)
	defer p.handlers.Done()
	p.agent.opts.Handler.ServeHTTP(w, r)
}

// start makes the first workers. They end with ctx.
func (p *dataPool) start(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ctx = ctx
	p.spawn()
}

// begin notes that the service has welcomed the member.
func (p *dataPool) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.demanded = false
}

// first reports whether there was never more than one connection wanted.
func (p *dataPool) first() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target == 1 && !p.demanded
}

// demand changes how many connections are kept. Surplus ones go as they end.
func (p *dataPool) demand(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.demanded = true
	p.setTarget(n)
}

// suggest is demand, unless the service has demanded another number meanwhile.
func (p *dataPool) suggest(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.demanded {
		p.setTarget(n)
	}
}

// setTarget needs p.mu.
func (p *dataPool) setTarget(n int) {
	p.target = max(n, 1)
	p.spawn()
}

// spawn needs p.mu.
func (p *dataPool) spawn() {
	for p.running < p.target && !p.draining && p.ctx.Err() == nil {
		p.running++
		p.workers.Go(func() { p.work(p.ctx) })
	}
}

// work keeps one connection for as long as it is wanted.
func (p *dataPool) work(ctx context.Context) {
	retry := backoff{next: firstRedial, most: p.agent.opts.MaxWait}
	for {
		hurry, wanted := p.wanted()
		if !wanted {
			return
		}
		served, err := p.serveOne(ctx)
		if err != nil && ctx.Err() == nil {
			p.agent.opts.Logger.Debug("data connection failed", "error", err)
		}
		if served { // a cancelled request ends its connection: that is no reason to wait
			retry.next = firstRedial
		} else {
			_ = retry.wait(ctx, hurry)
		}
		if ctx.Err() != nil {
			p.leave()
			return
		}
	}
}

// wanted reports whether a worker should go on, and takes it off the count if not.
func (p *dataPool) wanted() (hurry <-chan struct{}, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining || p.running > p.target {
		p.running--
		return nil, false
	}
	return p.hurried, true
}

func (p *dataPool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
}

// hurry makes workers that wait dial now: the service is known to be there.
func (p *dataPool) hurry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.hurried)
	p.hurried = make(chan struct{})
}

// serveOne parks one connection and answers on it until it ends. It reports whether
// there was anything to answer.
func (p *dataPool) serveOne(ctx context.Context) (served bool, err error) {
	tlsConn, err := p.agent.connect(ctx, memberapi.ProtoData)
	if err != nil {
		return false, err
	}
	conn := newParkedConn(tlsConn)
	defer conn.abort()
	if !p.enter(conn) {
		return false, nil
	}
	defer p.exit(conn)
	defer context.AfterFunc(ctx, conn.abort)()
	// No time-outs: the peer is the service, authenticated, and a parked connection
	// waits for as long as nobody asks anything.
	answers := answerer{
		conn: conn, r: bufio.NewReader(conn), handler: http.HandlerFunc(p.serveHTTP),
		active: func(now bool) { p.setActive(conn, now) }, log: p.agent.opts.Logger.Error,
	}
	answers.run(ctx)
	return conn.served.Load(), nil
}

func (p *dataPool) enter(c *parkedConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return false
	}
	p.conns[c] = false
	return true
}

func (p *dataPool) exit(c *parkedConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	close(p.changed)
	p.changed = make(chan struct{})
}

// setActive follows which connections are answering.
func (p *dataPool) setActive(c *parkedConn, active bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, open := p.conns[c]; !open {
		return
	}
	p.conns[c] = active
	c.served.Store(true)
	if p.lonely && !active {
		c.abort()
	}
}

// drain makes no new connections. The service, which knows exactly what is idle,
// closes the present ones.
func (p *dataPool) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = true
}

// finish ends a drain without the service: what is idle goes, and what is answering
// goes afterwards.
func (p *dataPool) finish(ctx context.Context) {
	p.mu.Lock()
	p.lonely = true
	for c, active := range p.conns {
		if !active {
			c.abort()
		}
	}
	p.mu.Unlock()
	_ = p.waitEmpty(ctx)
}

// waitEmpty waits until there is no connection.
func (p *dataPool) waitEmpty(ctx context.Context) error {
	for {
		p.mu.Lock()
		n, changed := len(p.conns), p.changed
		p.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// breakAll breaks every connection; the workers dial again.
func (p *dataPool) breakAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.abort()
	}
}

// stop waits, after Run's context has ended, until workers and handlers have returned. A
// handler that ignores its context is waited for only so long.
func (p *dataPool) stop() {
	over := make(chan struct{})
	go func() {
		p.workers.Wait()
		p.handlers.Wait()
		close(over)
	}()
	select {
	case <-over:
	case <-time.After(handlersGrace):
		p.agent.opts.Logger.Error("a request's handler does not end although its context has")
	}
}
