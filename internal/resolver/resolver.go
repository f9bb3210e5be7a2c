package resolver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

// Config says what a resolver answers, and whom it asks.
type Config struct {
	// Zones are the private zones linked to the virtual network. Optional.
	Zones []core.GoalZone
	// Servers are asked in order for names outside the zones. Optional: without any, such
	// names are refused.
	Servers []upstream.Server
	// Timeout bounds the wait for one server. Default 2 s.
	Timeout time.Duration
}

// Options configure a resolver.
type Options struct {
	Config
	// Dial connects to servers, over "udp" and "tcp". Default: a net.Dialer.
	Dial func(ctx context.Context, network string, s upstream.Server) (net.Conn, error)
	// MaxInFlight bounds how many questions wait for servers at once; one more is
	// dropped over UDP and fails over TCP. Default 512.
	MaxInFlight int
	// MaxInFlightPerClient bounds those of one client. Default 64.
	MaxInFlightPerClient int
}

// Limits that nobody needs to set.
const (
	maxQuestion     = 4096             // bytes, over UDP
	maxTCPConns     = 256              // per pair of sockets
	writeTimeout    = 2 * time.Second  // to a client that does not read
	idleTimeout     = 8 * time.Second  // of a TCP connection between questions
	answerLimit     = 8 * time.Second  // for all servers of a question together
	shutdownTimeout = 10 * time.Second // more than every wait of a question together
)

// Resolver answers DNS questions. Its methods may be called from several goroutines.
type Resolver struct {
	dial    func(ctx context.Context, network string, s upstream.Server) (net.Conn, error)
	waiting *waiting
	mu      sync.Mutex // of Update
	view    atomic.Pointer[view]
}

// New makes a resolver; it answers once Serve is called.
func New(o Options) *Resolver {
	r := &Resolver{dial: o.Dial, waiting: newWaiting(cmp.Or(o.MaxInFlight, 512), cmp.Or(o.MaxInFlightPerClient, 64))}
	r.Update(o.Config)
	return r
}

// Update replaces zones and servers, and forgets what was learned from the old ones; if
// nothing changed it does nothing. A question is answered from the old ones or the new
// ones as a whole.
func (r *Resolver) Update(c Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.view.Load()
	if old == nil || !reflect.DeepEqual(old.config, c) {
		r.view.Store(r.newView(c, old))
	}
}

// Serve answers on a pair of sockets until ctx ends, and then returns nil when every
// question that it took is done with. It closes both sockets. It may be called for
// several pairs at once.
func (r *Resolver) Serve(ctx context.Context, pc net.PacketConn, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() { _, _ = pc.Close(), l.Close() }()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { r.serve(ctx, w, q) })
	servers := []*dns.Server{
		{PacketConn: pc, Handler: handler, UDPSize: maxQuestion},
		{Listener: newLimitListener(l, maxTCPConns), Handler: handler, IdleTimeout: func() time.Duration { return idleTimeout }},
	}
	results := make([]error, len(servers))
	var group sync.WaitGroup
	for i, s := range servers {
		group.Go(func() {
			defer cancel() // one cannot go on without the other
			results[i] = run(ctx, s)
		})
	}
	group.Wait()
	if err := errors.Join(results...); err != nil {
		return fmt.Errorf("resolver on %s: %w", pc.LocalAddr(), err)
	}
	return nil
}

// run serves until ctx ends or the sockets fail.
func run(ctx context.Context, s *dns.Server) error {
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	failed := make(chan error, 1)
	go func() { failed <- s.ActivateAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-started:
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// The caller's context is over, and what is in flight has to end all the same.
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := s.ShutdownContext(ending); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return <-failed
}
