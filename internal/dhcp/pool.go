package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Exchanger speaks with servers: a Client, or a fake.
type Exchanger interface {
	Request(ctx context.Context, client string, hint netip.Addr, fits func(netip.Addr) error) (Lease, error)
	Extend(ctx context.Context, l Lease, rebind bool) (Lease, error)
	Release(l Lease) error
	Decline(l Lease) error
	Probe(ctx context.Context, a netip.Addr) error
}

// Options configure a Pool.
type Options struct {
	Exchange Exchanger // Required
	// Leases are those that an earlier process had.
	Leases []Lease
	// Lost are clients that have lost theirs since, and why.
	Lost map[string]string
	// Fits says why an address that a server gave can't be a client's, or nil. Required.
	Fits func(client string, a netip.Addr) error
	// Hint is an address to ask for, for a client that may have any; again says that what
	// servers gave did not do. Required.
	Hint func(client string, again bool) netip.Addr
	// Save writes all leases down, before any of them is used. Required.
	Save func([]Lease) error
	// Changed is called after each change of States, from any goroutine. Required.
	Changed func()
	// GiveUp is after how long without an address a client is lost. Default 20 s.
	GiveUp time.Duration
	// Every bounds how often a server is asked again for more time. Default 60 s.
	Every  time.Duration
	Logger *slog.Logger // Required
}

// Wanted is a client of a Pool.
type Wanted struct {
	ID string
	// Address is the one that it must have, if it has one already.
	Address netip.Addr
	// Keen clients are never lost: they ask again, and take another address.
	Keen bool
}

// State is how a client stands.
type State struct {
	Address netip.Addr // that it holds, if it is valid
	// Lost says why the client can't have its address, for good.
	Lost string
	// Problem says what keeps a client waiting that has no address yet.
	Problem string
}

// Pool keeps one lease for each client that is wanted. A client that is wanted no
// more counts until its lease is released.
type Pool struct {
	opts Options

	mu      sync.Mutex
	clients map[string]*client
	earlier map[string]Lease         // of an earlier process, until the first Set
	freed   map[netip.Addr]time.Time // when addresses were released that had been ours
	begun   time.Time
	ended   bool
	work    sync.WaitGroup
	saving  sync.Mutex // taken before mu
}

type client struct {
	want  Wanted
	lease Lease // zero: none
	state State
	drop  context.CancelCauseFunc
	taken chan *TakenError // capacity 1: somebody else uses its address
}

// errUnwanted ends a client whose lease is to be released.
var errUnwanted = errors.New("nobody wants it any more")

// NewPool begins with the leases of an earlier process. Those that the first Set does not
// want are released then.
func NewPool(opts Options) *Pool {
	if opts.GiveUp == 0 {
		opts.GiveUp = 20 * time.Second
	}
	if opts.Every == 0 {
		opts.Every = time.Minute
	}
	p := &Pool{opts: opts, clients: map[string]*client{}, earlier: map[string]Lease{}, freed: map[netip.Addr]time.Time{}, begun: time.Now()}
	for _, l := range opts.Leases {
		p.earlier[l.Client] = l
	}
	return p
}

// Set says which clients there are; the others' leases are released.
func (p *Pool) Set(wanted []Wanted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	keep := map[string]bool{}
	for _, w := range wanted {
		keep[w.ID] = true
		if c := p.clients[w.ID]; c != nil {
			c.want = w
		} else {
			p.start(w)
		}
	}
	for id := range p.earlier {
		p.start(Wanted{ID: id}) // to be released
	}
	for id, c := range p.clients {
		if !keep[id] {
			c.drop(errUnwanted)
		}
	}
}

// Resume keeps the leases of an earlier process until a Set, or another pool, says who is
// wanted. A client that loses its lease meanwhile gets no other.
func (p *Pool) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, l := range p.earlier {
		p.start(Wanted{ID: id, Address: l.Address})
	}
}

// start begins to look after a client. The caller holds mu.
func (p *Pool) start(w Wanted) {
	if p.ended {
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &client{want: w, lease: p.earlier[w.ID], drop: cancel, taken: make(chan *TakenError, 1)}
	delete(p.earlier, w.ID)
	if time.Now().Before(c.lease.Expires) {
		c.state.Address = c.lease.Address
	}
	if why := p.opts.Lost[w.ID]; !w.Keen && !c.lease.Address.IsValid() {
		c.state.Lost = why
	}
	p.clients[w.ID] = c
	p.work.Go(func() {
		defer cancel(nil)
		p.look(ctx, c)
	})
}

// States tells how every client stands.
func (p *Pool) States() map[string]State {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]State{}
	for id, c := range p.clients {
		out[id] = c.state
	}
	return out
}

// Taken says that somebody else uses an address and does not give way: it is declined, and
// its client's no more.
func (p *Pool) Taken(a netip.Addr, mac net.HardwareAddr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		if c.lease.Address != a {
			continue
		}
		select {
		case c.taken <- &TakenError{Address: a, MAC: mac}:
		default:
		}
	}
}

// Close ends all work. The leases stay.
func (p *Pool) Close() {
	p.mu.Lock()
	p.ended = true
	for _, c := range p.clients {
		c.drop(nil)
	}
	p.mu.Unlock()
	p.work.Wait()
}

// look keeps one client's lease until it is wanted no more.
func (p *Pool) look(ctx context.Context, c *client) {
	for ctx.Err() == nil {
		switch {
		case p.state(c).Lost != "":
			<-ctx.Done()
		case !c.lease.Address.IsValid():
			p.obtain(ctx, c)
		default:
			p.hold(ctx, c)
		}
	}
	if !errors.Is(context.Cause(ctx), errUnwanted) {
		return
	}
	p.giveUp(c)
	p.mu.Lock()
	delete(p.clients, c.want.ID)
	p.mu.Unlock()
	p.opts.Changed()
}

// obtain asks until the client has an address, or may ask no longer.
func (p *Pool) obtain(ctx context.Context, c *client) {
	begun := time.Now()
	var last error // of an attempt that had all its time
	wait := min(time.Second, p.opts.GiveUp/10)
	for {
		want := p.wanted(c)
		limit, cancel := ctx, func() {}
		if !want.Keen {
			limit, cancel = context.WithDeadline(ctx, begun.Add(p.opts.GiveUp))
		}
		l, err := p.request(limit, want, last != nil)
		if err == nil {
			err = p.take(c, l)
		}
		over := limit.Err() != nil
		cancel()
		if err == nil || ctx.Err() != nil {
			return
		}
		if over && last != nil && errors.Is(err, ErrSilent) {
			err = last
		}
		last = err
		waited := time.Since(begun).Round(100 * time.Millisecond)
		reason := fmt.Sprintf("%v (for %v)", err, waited)
		if over {
			p.lose(c, reason)
			return
		}
		p.change(c, func(s *State) { s.Problem = reason })
		pause(ctx, wait)
		if want.Keen { // which asks for ever
			wait = min(2*wait, p.opts.GiveUp/2)
		}
	}
}

// request asks once, for an address that fits and that nobody on the network has.
func (p *Pool) request(ctx context.Context, want Wanted, again bool) (Lease, error) {
	hint := want.Address
	if !hint.IsValid() {
		hint = p.opts.Hint(want.ID, again)
	}
	l, err := p.opts.Exchange.Request(ctx, want.ID, hint, func(a netip.Addr) error { return p.fits(want, a) })
	if err != nil || p.justFreed(l.Address) {
		return l, err
	}
	err = p.opts.Exchange.Probe(ctx, l.Address)
	if err == nil {
		return l, nil
	}
	back := p.opts.Exchange.Release
	if taken := new(TakenError); errors.As(err, &taken) {
		p.opts.Logger.Warn("an address by DHCP is somebody else's: it is declined", "client", want.ID, "address", l.Address, "server", l.Server, "mac", taken.MAC)
		back = p.opts.Exchange.Decline
	}
	return Lease{}, errors.Join(err, back(l))
}

func (p *Pool) fits(want Wanted, a netip.Addr) error {
	if want.Address.IsValid() && a != want.Address {
		return fmt.Errorf("the DHCP server gives %s in place of %s", a, want.Address)
	}
	p.mu.Lock()
	err := p.held(want.ID, a)
	p.mu.Unlock()
	if err != nil {
		return err
	}
	return p.opts.Fits(want.ID, a)
}

// errHeld is in the error for an address that another client of the pool has.
var errHeld = errors.New("does it tell clients apart by their MAC alone?")

// held is an error if another client has an address. The caller holds mu.
func (p *Pool) held(id string, a netip.Addr) error {
	for other, c := range p.clients {
		if other != id && c.lease.Address == a {
			return fmt.Errorf("the DHCP server gives %s, which %s has: %w", a, other, errHeld)
		}
	}
	return nil
}

// resting is for how long after its release nobody else can be thought to have begun to
// use an address: most servers give the one first that was free longest.
const resting = 30 * time.Second

// justFreed says that the pool had an address until a moment ago, and need not ask for it.
func (p *Pool) justFreed(a netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, t := range p.freed {
		if time.Since(t) > resting {
			delete(p.freed, a)
		}
	}
	_, ok := p.freed[a]
	return ok
}

// take gives the client a lease, once that is written down.
func (p *Pool) take(c *client, l Lease) error {
	err := p.save(c, l)
	switch {
	case errors.Is(err, errHeld):
		return err // to release it would take it from the other
	case err != nil:
		return errors.Join(fmt.Errorf("the lease can't be written down: %w", err), p.opts.Exchange.Release(l))
	}
	p.opts.Logger.Info("an address was leased by DHCP", "client", l.Client, "address", l.Address, "server", l.Server, "until", l.Expires)
	p.change(c, func(s *State) { *s = State{Address: l.Address} })
	return nil
}

// hold extends a lease until it is lost, or its client dropped.
func (p *Pool) hold(ctx context.Context, c *client) {
	for ctx.Err() == nil {
		what, again := next(c.lease, time.Now(), p.opts.Every)
		switch what {
		case dutyGone:
			why := fmt.Sprintf("%s did not extend it", c.lease.Server)
			if c.lease.Expires.Before(p.begun) {
				why = "the host was not there to extend it"
			}
			p.expire(c, fmt.Sprintf("its DHCP lease of %s has expired at %s: %s", c.lease.Address, c.lease.Expires.UTC().Format(time.RFC3339), why))
			return
		case dutyRenew, dutyRebind:
			l, err := p.extend(ctx, c.lease, what)
			var refused *RefusedError
			switch {
			case errors.As(err, &refused):
				p.expire(c, fmt.Sprintf("its DHCP lease of %s was not extended: %v", c.lease.Address, err))
				return
			case err == nil:
				if err = p.save(c, l); err == nil {
					continue
				}
			}
			if ctx.Err() == nil {
				p.opts.Logger.Warn("a DHCP lease could not be extended yet", "client", c.lease.Client, "address", c.lease.Address, "error", err, "until", c.lease.Expires)
			}
		}
		if p.yields(ctx, c, time.Until(again)) {
			return
		}
	}
}

// yields waits and says whether the client has given its address up meanwhile, to somebody
// who uses it, too.
func (p *Pool) yields(ctx context.Context, c *client, wait time.Duration) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case by := <-c.taken:
		if by.Address != c.lease.Address {
			return false // it was said of one before
		}
		if err := p.opts.Exchange.Decline(c.lease); err != nil {
			p.opts.Logger.Warn("an address by DHCP can't be declined", "client", c.lease.Client, "address", by.Address, "error", err)
		}
		p.expire(c, fmt.Sprintf("its DHCP lease of %s was declined: %s uses that address, too", by.Address, by.MAC))
		return true
	}
	return false
}

// extend asks for more time until the lease's next stage, and not beyond.
func (p *Pool) extend(ctx context.Context, l Lease, what duty) (Lease, error) {
	end := l.Rebind
	if what == dutyRebind {
		end = l.Expires
	}
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	return p.opts.Exchange.Extend(ctx, l, what == dutyRebind)
}

// expire ends a lease that the client no longer has.
func (p *Pool) expire(c *client, reason string) {
	if err := p.save(c, Lease{}); err != nil {
		p.opts.Logger.Warn("the end of a DHCP lease can't be written down", "client", c.lease.Client, "error", err)
		p.mu.Lock()
		c.lease = Lease{}
		p.mu.Unlock()
	}
	if !p.wanted(c).Keen {
		p.lose(c, reason)
		return
	}
	p.opts.Logger.Warn("a DHCP lease is lost", "client", p.wanted(c).ID, "reason", reason)
	p.change(c, func(s *State) { *s = State{Problem: reason} })
}

// giveUp releases a client's lease.
func (p *Pool) giveUp(c *client) {
	if !c.lease.Address.IsValid() {
		return
	}
	l := c.lease
	p.change(c, func(s *State) { *s = State{} }) // nobody answers for it any more
	p.mu.Lock()
	p.freed[l.Address] = time.Now()
	p.mu.Unlock()
	err := p.opts.Exchange.Release(l)
	if err == nil {
		p.opts.Logger.Info("an address was released by DHCP", "client", l.Client, "address", l.Address, "server", l.Server)
	}
	if err = errors.Join(err, p.save(c, Lease{})); err != nil {
		p.opts.Logger.Warn("a DHCP lease could not be released: it expires by itself", "client", l.Client, "address", l.Address, "error", err)
	}
}

func (p *Pool) lose(c *client, reason string) {
	p.opts.Logger.Warn("a DHCP lease is lost", "client", p.wanted(c).ID, "reason", reason)
	p.change(c, func(s *State) { *s = State{Lost: reason} })
}

// save makes l the client's lease, if all of them can be written down.
func (p *Pool) save(c *client, l Lease) error {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	if err := p.held(l.Client, l.Address); err != nil && l.Address.IsValid() {
		p.mu.Unlock()
		return err
	}
	var all []Lease
	for _, l := range p.earlier {
		all = append(all, l)
	}
	for _, other := range p.clients {
		held := other.lease
		if other == c {
			held = l
		}
		if held.Address.IsValid() {
			all = append(all, held)
		}
	}
	p.mu.Unlock()
	if err := p.opts.Save(all); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.lease = l
	return nil
}

func (p *Pool) change(c *client, f func(*State)) {
	p.mu.Lock()
	f(&c.state)
	p.mu.Unlock()
	p.opts.Changed()
}

func (p *Pool) state(c *client) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return c.state
}

func (p *Pool) wanted(c *client) Wanted {
	p.mu.Lock()
	defer p.mu.Unlock()
	return c.want
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
