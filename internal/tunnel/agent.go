package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/sockio"
	"github.com/sluice-gateway/sluice/internal/splice"
)

// State of an agent, as OnState hears it.
type State string

// The states of an agent.
const (
	StateConnected State = "connected" // the service has welcomed the control connection
	StateLost      State = "lost"      // the control connection is gone; the agent dials again
	StateDraining  State = "draining"  // no new requests
)

// AgentOptions of NewAgent.
type AgentOptions struct {
	// Dial makes a TCP connection to the host's relay. Required.
	Dial func(ctx context.Context) (net.Conn, error)
	// TLS returns the client configuration for one connection. Required.
	TLS func(alpn string) *tls.Config
	// Handler answers the service's requests. A request's context ends when the service
	// cancels it, provided that the handler has read the request's body to its end. Required.
	Handler http.Handler
	Parked  int           // Default DefaultParked
	Version string        // the program's, for the service's log
	OnState func(State)   // Default none; it must not block
	Logger  *slog.Logger  // Default none
	MaxWait time.Duration // Default 2 s: the longest wait between two dials
}

// Bounds of an agent's waits.
const (
	connectTimeout = 10 * time.Second
	firstRedial    = 8 * time.Millisecond
	restAfter      = 30 * time.Millisecond
	handlersGrace  = 10 * time.Second
)

// Agent is the member's end of its tunnel.
type Agent struct {
	opts AgentOptions
	pool *dataPool

	mu       sync.Mutex
	control  *control
	draining bool
	drained  chan struct{} // closed when draining begins
}

// NewAgent makes an agent that does nothing until Run.
func NewAgent(opts AgentOptions) (*Agent, error) {
	if opts.Dial == nil || opts.TLS == nil || opts.Handler == nil {
		return nil, errs.New(errs.Internal, "tunnel.NewAgent: Dial, TLS and Handler are required")
	}
	if opts.Parked <= 0 {
		opts.Parked = DefaultParked
	}
	if opts.MaxWait == 0 {
		opts.MaxWait = 2 * time.Second
	}
	if opts.OnState == nil {
		opts.OnState = func(State) {}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Agent{opts: opts, drained: make(chan struct{})}
	a.pool = newDataPool(a)
	return a, nil
}

// Run keeps the tunnel up until ctx ends, which breaks what is in flight; or until a
// drain, the service's or Drain's, has finished; or until the service says that it will
// not have this member. It returns nil, nil and an error of class Denied, after every
// handler has returned, or 10 s later. It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.pool.start(ctx)
	err := a.keepControl(ctx)
	if err == nil && ctx.Err() == nil {
		a.pool.finish(ctx) // drained: what the service did not close
	}
	cancel()
	a.pool.stop()
	return err
}

// Drain finishes what is in flight and then ends Run. It returns at once.
func (a *Agent) Drain() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.draining {
		return
	}
	a.draining = true
	close(a.drained)
	a.pool.drain()
	if a.control != nil {
		a.control.post(message{Type: msgDrain})
	}
	a.opts.OnState(StateDraining)
}

func (a *Agent) isDraining() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.draining
}

// keepControl keeps one control connection, for ever. It returns nil when ctx has
// ended or a drain is over, else the refusal.
func (a *Agent) keepControl(ctx context.Context) error {
	retry := backoff{next: firstRedial, most: a.opts.MaxWait}
	for {
		began := time.Now()
		welcome, err := a.session(ctx)
		if ctx.Err() != nil || a.isDraining() {
			return nil
		}
		if refused(err) {
			return errs.New(errs.Denied, "the service refuses this member: %w", err)
		}
		a.opts.Logger.Warn("control connection lost, dialling again", "error", err)
		if welcome {
			a.opts.OnState(StateLost)
			retry.succeeded(began)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			a.pool.breakAll() // silence: the others lead nowhere either
		}
		if retry.wait(ctx, nil) != nil {
			return nil
		}
	}
}

// session runs one control connection until it ends, and reports whether the service
// welcomed it.
func (a *Agent) session(ctx context.Context) (welcomed bool, err error) {
	conn, err := a.connect(ctx, memberapi.ProtoControl)
	if err != nil {
		return false, err
	}
	c := newControl(conn, defaultHeartbeatEvery, defaultHeartbeatTimeout)
	defer c.abort()
	defer context.AfterFunc(ctx, c.abort)()
	if err := c.send(message{Type: msgHello, Version: a.opts.Version, Parked: a.opts.Parked}); err != nil {
		return false, err
	}
	m, err := c.receive()
	if err != nil {
		return false, err
	}
	if err := a.welcome(c, m); err != nil {
		return false, err
	}
	defer a.setControl(nil)
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { a.closeDrained(ctx, c) })
	watch.Go(func() { a.parkRest(ctx, m.Data) })
	defer watch.Wait()
	defer cancel()
	return true, c.run(ctx, a.handle)
}

// welcome takes up what the service answered to the hello.
func (a *Agent) welcome(c *control, m message) error {
	if m.Type != msgWelcome {
		return a.handle(m)
	}
	if m.EveryMS > 0 && m.TimeoutMS > m.EveryMS {
		c.every = time.Duration(m.EveryMS) * time.Millisecond
		c.timeout = time.Duration(m.TimeoutMS) * time.Millisecond
	}
	a.setControl(c)
	a.pool.begin()
	a.pool.hurry()
	a.opts.OnState(StateConnected)
	return nil
}

// parkRest parks as many connections as the service wants to begin with. The first of all
// comes alone: when a member was woken for a query, that goes over it, and the others'
// handshakes would take the time of the query.
func (a *Agent) parkRest(ctx context.Context, n int) {
	if a.pool.first() {
		rest := time.NewTimer(restAfter)
		defer rest.Stop()
		select {
		case <-rest.C:
		case <-a.drained:
			return
		case <-ctx.Done():
			return
		}
	}
	a.pool.suggest(n)
}

// setControl makes c the connection that Drain speaks on.
func (a *Agent) setControl(c *control) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.control = c
	if c != nil && a.draining {
		c.post(message{Type: msgDrain})
	}
}

// handle acts on one message of the service.
func (a *Agent) handle(m message) error {
	switch m.Type {
	case msgPark:
		a.pool.demand(m.Data)
	case msgDrain:
		a.Drain()
	case msgRefused:
		return refusalError{m.Error}
	default:
		return fmt.Errorf("the service sent a %q message that it may not send here", m.Type)
	}
	return nil
}

// closeDrained ends the control connection when a drain is over, which tells the service.
func (a *Agent) closeDrained(ctx context.Context, c *control) {
	select {
	case <-a.drained:
	case <-ctx.Done():
		return
	}
	if a.pool.waitEmpty(ctx) == nil {
		c.abort()
	}
}

// connect dials the relay and runs the handshake.
func (a *Agent) connect(ctx context.Context, alpn string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := a.opts.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial the relay: %w", err)
	}
	if tcp, ok := raw.(sockio.Socket); ok {
		if err := splice.KeepAlive(tcp); err != nil {
			raw.Close()
			return nil, fmt.Errorf("dial the relay: %w", err)
		}
		quick, err := sockio.New(tcp)
		if err != nil {
			raw.Close()
			return nil, fmt.Errorf("dial the relay: %w", err)
		}
		raw = &batchConn{Conn: quick}
	}
	conn := tls.Client(raw, a.opts.TLS(alpn))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS with the service: %w", err)
	}
	return conn, nil
}

// refusalError is the service's own word that it will not have this member.
type refusalError struct{ why *errs.Error }

func (e refusalError) Error() string {
	if e.why == nil {
		return "no reason given"
	}
	return e.why.Message
}

// refused reports whether dialling again is of no use: the service said so, or does
// not accept the certificate.
func refused(err error) bool {
	var word refusalError
	if errors.As(err, &word) {
		return true
	}
	return identity.Refused(err)
}
