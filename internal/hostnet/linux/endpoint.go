package linux

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/splice"
)

// endpoint answers on a private endpoint's address in V, and joins each connection to
// one that is dialled from the host's own namespace.
type endpoint struct {
	n      *Network
	name   string
	label  string // begins those of its connections at the splicer
	addr   netip.AddrPort
	target atomic.Pointer[string]
	l      *net.TCPListener
	seats  *seats
	failed atomic.Bool // the last dial failed: the next failure is not logged

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// endpointLabels begins the label of every endpoint's connections.
const endpointLabels = "endpoint/"

func (n *Network) openEndpoint(at *space, g core.GoalEndpoint) (*endpoint, error) {
	e := &endpoint{n: n, name: g.Name, addr: netip.AddrPortFrom(g.Address, g.Port), seats: newSeats(n.opts.MaxEndpointConns, n.opts.MaxEndpointConnsPerMember)}
	e.label = endpointLabels + g.UID + "/" + e.addr.String() + "/" // no label begins another
	e.target.Store(&g.Target)
	e.ctx, e.cancel = context.WithCancel(n.ctx)
	var err error
	if e.l, err = at.listenTCP(e.ctx, e.addr.String()); err != nil {
		e.cancel()
		return nil, err
	}
	if err := e.adopt(); err != nil {
		e.shut()
		return nil, err
	}
	e.work.Go(e.accept)
	return e, nil
}

// adopt counts the connections that an earlier process joined and that go on.
func (e *endpoint) adopt() error {
	pairs, err := e.n.opts.Splicer.Adopted(e.label)
	if err != nil {
		return err
	}
	for _, pair := range pairs {
		member := e.memberOf(pair.Label)
		e.seats.keep(member)
		e.work.Go(func() { defer e.seats.leave(member); e.watch(pair) })
	}
	return nil
}

func (e *endpoint) accept() {
	for {
		c, err := e.l.AcceptTCP()
		if e.ctx.Err() != nil {
			if err == nil {
				reset(c)
			}
			return
		}
		if err != nil { // out of file descriptors, say: the backlog keeps the others
			select {
			case <-e.ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		member := callerOf(c)
		if why := e.seats.take(member); why != "" {
			e.report(false, why+": "+member.String(), nil)
			reset(c)
			continue
		}
		e.work.Go(func() { e.serve(c, member) })
	}
}

// serve resets the member's connection if the target can't be reached, so that the
// client sees at once what a refused connection would have shown it.
func (e *endpoint) serve(c *net.TCPConn, member netip.Addr) {
	defer e.seats.leave(member)
	ctx, cancel := context.WithTimeout(e.ctx, e.n.opts.DialTimeout)
	target, err := e.n.dialHost(ctx, *e.target.Load())
	cancel()
	if err != nil {
		e.report(false, "the target does not answer", err)
		reset(c)
		return
	}
	pair, err := e.n.opts.Splicer.Join(e.labelFor(member), c, target)
	if err != nil {
		e.report(false, "a connection can't be joined to the target", err)
		return
	}
	e.report(true, "the target answers", nil)
	e.watch(pair)
}

// watch waits for the end of a connection; how it ended, both ends have seen.
func (e *endpoint) watch(pair *splice.Pair) {
	select {
	case <-e.ctx.Done():
	case <-pair.Done():
	}
}

// report logs changes of state, not each connection.
func (e *endpoint) report(ok bool, what string, err error) {
	if e.failed.Swap(!ok) == !ok || e.ctx.Err() != nil {
		return
	}
	log := e.n.log.With("endpoint", e.name, "target", *e.target.Load())
	if ok {
		log.Info(what)
		return
	}
	log.Warn(what, "error", err)
}

// shut ends the listener. Connections go on: they are the splicer's.
func (e *endpoint) shut() {
	e.cancel()
	_ = e.l.Close()
	e.work.Wait()
}

// remove ends the connections as well. A socket that stayed open would keep the whole
// namespace alive.
func (e *endpoint) remove() {
	e.shut()
	e.n.warn("ending the connections of private endpoint "+e.name, e.n.opts.Splicer.Clear(e.label))
}

// sweepConnections ends the connections of endpoints that are gone, which a process
// before this one joined.
func (n *Network) sweepConnections() error {
	var kept []string
	for _, v := range n.vnets {
		for _, e := range v.endpoints {
			kept = append(kept, e.label)
		}
	}
	pairs, err := n.opts.Splicer.Adopted(endpointLabels)
	for _, pair := range pairs {
		if !slices.ContainsFunc(kept, func(l string) bool { return strings.HasPrefix(pair.Label, l) }) {
			pair.Break()
		}
	}
	return err
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// dialHost dials from the host's own namespace.
func (n *Network) dialHost(ctx context.Context, target string) (*net.TCPConn, error) {
	c, err := n.dial(ctx, "tcp", target)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// dial is a dialer of the host's own namespace.
func (n *Network) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	if n.opts.HostNS == "" {
		return d.DialContext(ctx, network, addr)
	}
	ns, err := os.Open(n.opts.HostNS)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = inside(ns, func() (err error) {
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}
