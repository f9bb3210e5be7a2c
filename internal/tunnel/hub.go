package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
)

// HubOptions of NewHub.
type HubOptions struct {
	// OnUp is called when a member's control connection is up, OnDown when a member
	// that was up is gone. Calls come one at a time in the order of events, from a
	// goroutine of their own, so that they may call the Hub. Default: none.
	OnUp   func(member string, generation int64)
	OnDown func(member string, generation int64, reason error)
	// OnSuspect is called when a member that is up has become silent, long before it counts
	// as gone, and with false when it is heard again. Default: none.
	OnSuspect func(member string, generation int64, silent bool)

	HeartbeatEvery   time.Duration // Default 5 s
	HeartbeatTimeout time.Duration // Default 15 s
	// Grace is how long a member may be without its control connection before it
	// counts as gone. Default 3 s.
	Grace time.Duration
	// TakeTimeout bounds how long a request waits for a connection. Default 5 s.
	TakeTimeout time.Duration
	// MaxData bounds the data connections of one member. Default 64.
	MaxData int
	Logger  *slog.Logger // Default: none
}

func (o *HubOptions) setDefaults() {
	if o.HeartbeatEvery == 0 {
		o.HeartbeatEvery = defaultHeartbeatEvery
	}
	if o.HeartbeatTimeout == 0 {
		o.HeartbeatTimeout = defaultHeartbeatTimeout
	}
	if o.Grace == 0 {
		o.Grace = defaultGrace
	}
	if o.TakeTimeout == 0 {
		o.TakeTimeout = 5 * time.Second
	}
	if o.MaxData == 0 {
		o.MaxData = 64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OnUp == nil {
		o.OnUp = func(string, int64) {}
	}
	if o.OnDown == nil {
		o.OnDown = func(string, int64, error) {}
	}
	if o.OnSuspect == nil {
		o.OnSuspect = func(string, int64, bool) {}
	}
}

// Hub is the service's end of all tunnels. Its methods may be called concurrently.
type Hub struct {
	opts   HubOptions
	events *events
	live   sync.WaitGroup // HandleControl and HandleData calls
	life   context.Context
	end    context.CancelFunc

	mu      sync.Mutex
	members map[memberKey]*member
	changed chan struct{} // closed and replaced when a member comes up, or the hub closes
	closed  bool
}

type memberKey struct {
	id         string
	generation int64
}

// NewHub makes a hub. Close must be called.
func NewHub(opts HubOptions) *Hub {
	opts.setDefaults()
	life, end := context.WithCancel(context.Background())
	return &Hub{
		opts: opts, events: newEvents(), life: life, end: end,
		members: map[memberKey]*member{}, changed: make(chan struct{}),
	}
}

// HandleControl serves a member's control connection until it ends, and closes it. The
// subject has been authenticated and authorized.
func (h *Hub) HandleControl(ctx context.Context, subject identity.Subject, conn *tls.Conn) {
	m, ok := h.enter(subject)
	if !ok {
		abortConn(conn)
		return
	}
	defer h.leave(m)
	c := newControl(conn, h.opts.HeartbeatEvery, h.opts.HeartbeatTimeout)
	ctx, cancel := h.bound(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, c.abort)()
	hello, err := c.receive()
	if err != nil || hello.Type != msgHello {
		h.opts.Logger.Warn("control connection without a hello", "member", subject.Name, "error", err)
		c.abort()
		return
	}
	if !m.attach(c, hello) {
		c.abort()
		return
	}
	h.announce()
	m.detach(ctx, c, c.run(ctx, m.handle))
}

// HandleData serves one of a member's parked connections until it ends, and closes
// it. The subject has been authenticated and authorized.
func (h *Hub) HandleData(ctx context.Context, subject identity.Subject, conn *tls.Conn) {
	m, ok := h.enter(subject)
	if !ok {
		abortConn(conn)
		return
	}
	defer h.leave(m)
	d := newDataConn(m, conn)
	ctx, cancel := h.bound(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, d.abort)()
	d.serve()
}

// bound returns a context that ends with ctx or with the hub.
func (h *Hub) bound(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(h.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// enter finds, or makes, the record of a member and holds it.
func (h *Hub) enter(s identity.Subject) (*member, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, false
	}
	key := memberKey{s.Name, s.Generation}
	m := h.members[key]
	if m == nil {
		m = newMember(h, key)
		h.members[key] = m
	}
	m.holds++
	h.live.Add(1)
	return m, true
}

// leave lets go of a member's record, which goes when nobody holds it any more.
func (h *Hub) leave(m *member) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.holds--; m.holds == 0 {
		delete(h.members, m.key)
	}
	h.live.Done()
}

func (h *Hub) find(key memberKey) *member {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.members[key]
}

// announce wakes those who wait for a member to come up.
func (h *Hub) announce() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.changed)
	h.changed = make(chan struct{})
}

// Connected reports whether a member is up, its grace included.
func (h *Hub) Connected(id string, generation int64) bool {
	m := h.find(memberKey{id, generation})
	return m != nil && m.isUp()
}

// WaitUp waits until a member is up, or ctx ends.
func (h *Hub) WaitUp(ctx context.Context, id string, generation int64) error {
	for {
		h.mu.Lock()
		changed, closed := h.changed, h.closed
		h.mu.Unlock()
		if closed {
			return errs.New(errs.Unavailable, "the service is stopping").WithStep(errs.StepTunnel)
		}
		if h.Connected(id, generation) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait until member %s dials back: %w", id, context.Cause(ctx))
		}
	}
}

// RoundTripper returns the way to a member that is up. Requests need no particular
// host. Each runs on a connection of its own, which is used again when its answer was
// read to the end, trailers included, and is reset when the body is closed before: that
// ends the request's context in the member. The request's context bounds the whole, the
// reading of the body too.
func (h *Hub) RoundTripper(id string, generation int64) (http.RoundTripper, error) {
	if !h.Connected(id, generation) {
		return nil, notConnected(id)
	}
	return roundTripper{hub: h, key: memberKey{id, generation}}, nil
}

func notConnected(id string) error {
	return errs.New(errs.Unavailable, "member %s is not connected to the service", id).WithStep(errs.StepTunnel)
}

// Drain tells every generation of a member to take no new requests and to close each
// connection when its request is over. OnDown with ErrDrained tells the end.
func (h *Hub) Drain(id string) {
	for _, m := range h.all(func(k memberKey) bool { return k.id == id }) {
		m.drain()
	}
}

// Disconnect breaks every connection of a member at once; requests in flight fail. The
// member is down, without grace; it may come again if the service still authorizes it.
func (h *Hub) Disconnect(id string, generation int64) {
	if m := h.find(memberKey{id, generation}); m != nil {
		m.down(errors.New("disconnected by the service"))
	}
}

func (h *Hub) all(match func(memberKey) bool) []*member {
	h.mu.Lock()
	defer h.mu.Unlock()
	var found []*member
	for k, m := range h.members {
		if match(k) {
			found = append(found, m)
		}
	}
	return found
}

// Close breaks every connection, waits until all calls of the hub's handlers and all
// callbacks have returned, and refuses whatever comes later.
func (h *Hub) Close() {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		close(h.changed)
		h.changed = make(chan struct{})
	}
	h.mu.Unlock()
	for _, m := range h.all(func(memberKey) bool { return true }) {
		m.stop(errors.New("the service is stopping"))
	}
	h.end()
	h.live.Wait()
	h.events.close()
}
