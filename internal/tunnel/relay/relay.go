// Package relay is the host's part of the tunnel: it accepts the TCP connections of the
// members on their link-local interfaces, dials the service for each, and lets the
// kernel move the bytes, which it can't read, since TLS runs from member to service. To a
// service in the same process it hands the connection itself.
//
// It owns its connections, their limits and their accounts. The host gives it the
// listener and knows the members; nothing else uses it.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/splice"
)

// Options of New.
type Options struct {
	// Listener is what the members' tunnels reach, and nothing else does. It must give
	// *net.TCPConn. The relay closes it. Required.
	Listener net.Listener
	// Dial connects to the service's hosts address. Required, unless there is a Handover.
	Dial func(ctx context.Context) (*net.TCPConn, error)
	// Known reports whether a tunnel address belongs to a present member. Required.
	Known func(addr netip.Addr) bool
	// Splicer joins the connections, and keeps them when the relay ends. Required.
	Splicer *splice.Splicer
	// Handover takes the connections to a service in this process. Optional.
	Handover     *Handover
	MaxPerMember int           // Default 128: connections at a time
	DialTimeout  time.Duration // Default 5 s
	Logger       *slog.Logger  // Default: none
}

// Stats are the accounts of one member since the relay began, or since the member came.
type Stats struct {
	Open      int   // connections now
	Accepted  int64 // connections ever
	Refused   int64 // over the limit, or the service could not be reached
	ToService int64 // bytes, those of open connections included
	ToMember  int64
}

// Relay accepts and joins connections.
type Relay struct {
	opts   Options
	outage outage

	mu      sync.Mutex
	members map[netip.Addr]*account
	handed  map[*Handed]netip.Addr
}

// account is one member's: what is over, and what is open.
type account struct {
	addr netip.Addr
	past Stats
	open int
}

// New makes a relay that accepts nothing until Run.
func New(opts Options) (*Relay, error) {
	if opts.Listener == nil || opts.Dial == nil && opts.Handover == nil || opts.Known == nil || opts.Splicer == nil {
		return nil, errs.New(errs.Internal, "relay.New: Listener, Dial or Handover, Known and Splicer are required")
	}
	if opts.MaxPerMember == 0 {
		opts.MaxPerMember = 128
	}
	if opts.DialTimeout == 0 {
		opts.DialTimeout = 5 * time.Second
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Relay{opts: opts, outage: outage{log: opts.Logger}, members: map[netip.Addr]*account{}, handed: map[*Handed]netip.Addr{}}, nil
}

// Run relays until ctx ends or the listener fails. Connections that are joined by then
// go on in the splicer, and count for the next relay that has it.
func (r *Relay) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { r.opts.Listener.Close() })()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	if err := r.adopt(ctx, &conns); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	for failures := 0; ; {
		c, err := r.opts.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("relay: %w", err)
		case err != nil:
			failures++
			r.pause(ctx, failures, err)
			continue
		}
		failures = 0
		conns.Go(func() { r.serve(ctx, c) })
	}
}

// pause waits after a failed accept: out of descriptors, most likely, which passes.
func (r *Relay) pause(ctx context.Context, failures int, err error) {
	r.opts.Logger.Error("relay can't accept", "error", err)
	t := time.NewTimer(min(time.Duration(failures)*10*time.Millisecond, time.Second))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// adopt takes over what an earlier relay joined.
func (r *Relay) adopt(ctx context.Context, conns *sync.WaitGroup) error {
	pairs, err := r.opts.Splicer.Adopted(labels)
	if err != nil {
		return err
	}
	for _, pair := range pairs {
		addr, err := addrOfLabel(pair.Label)
		if err != nil {
			pair.Break()
			continue
		}
		a := r.count(addr)
		conns.Go(func() { r.watch(ctx, a, pair) })
	}
	return nil
}

// serve is the life of one member's connection.
func (r *Relay) serve(ctx context.Context, c net.Conn) {
	member, ok := c.(*net.TCPConn)
	if !ok {
		r.opts.Logger.Error("relay's listener does not give TCP connections", "type", fmt.Sprintf("%T", c))
		c.Close()
		return
	}
	a, ok := r.enter(member)
	if !ok {
		abort(member)
		return
	}
	if r.opts.Handover != nil {
		r.handOver(ctx, a, member)
		return
	}
	pair, err := r.join(ctx, a.addr, member)
	if err != nil {
		r.outage.failed(a.addr, err)
		r.refuse(a)
		r.leave(a, 0, 0)
		return
	}
	r.outage.over()
	r.watch(ctx, a, pair)
}

// watch books a connection when it is over.
func (r *Relay) watch(ctx context.Context, a *account, pair *splice.Pair) {
	select {
	case <-ctx.Done():
		return
	case <-pair.Done():
	}
	up, down, err := pair.Wait()
	r.leave(a, up, down)
	r.opts.Logger.Debug("relayed", "tunnelAddress", a.addr, "toService", up, "toMember", down, "error", err)
}

// join dials the service and lets the splicer move bytes until both directions have ended.
func (r *Relay) join(ctx context.Context, addr netip.Addr, member *net.TCPConn) (*splice.Pair, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.DialTimeout)
	service, err := r.opts.Dial(ctx)
	cancel()
	if err != nil {
		abort(member)
		return nil, err
	}
	if err := errors.Join(splice.KeepAlive(member), splice.KeepAlive(service)); err != nil {
		abort(member)
		abort(service)
		return nil, err
	}
	return r.opts.Splicer.Join(labelOf(addr), member, service)
}

// abort resets a connection: what ends here is broken, not over.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
