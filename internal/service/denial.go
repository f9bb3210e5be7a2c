package service

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/sluice-gateway/sluice/internal/resolver"
)

// denial is the error of a query whose connection the rules deny for certain, so that
// nobody has to wait for it to time out.
type denial struct {
	err *errs.Error
	to  netip.AddrPort
	// cut says that no route leads there, which ends established flows as well.
	cut bool
}

// Error implements error.
func (d *denial) Error() string { return d.err.Error() }

// Unwrap gives the classified error.
func (d *denial) Unwrap() error { return d.err }

// steps are those of a test that ended there.
func (d *denial) steps() []memberapi.TestStep {
	return []memberapi.TestStep{
		{Name: errs.StepResolve, Detail: d.to.Addr().String()},
		{Name: d.err.Step, Error: d.err.Message, Hint: d.err.Hint},
	}
}

// judge says where a new connection from a member to a source would lead, as far as
// that is certain, and returns its error if the rules or routes deny it whatever happens.
// Only allowances are remembered: a denial is found anew each time.
func (s *Service) judge(ctx context.Context, t core.TenantID, m core.Member, tgt target) ([]netip.Addr, *denial) {
	sn, err := s.snap(ctx, t)
	if err != nil {
		return nil, nil
	}
	key := flowKey{m.Address, tgt.uid}
	if to, ok := sn.allowed.Load(key); ok {
		return to.([]netip.Addr), nil
	}
	to, d := s.findDenial(ctx, t, m, tgt)
	if d == nil {
		sn.allowed.Store(key, to)
	}
	return to, d
}

// flowKey is a member's address and a data source's UID.
type flowKey struct {
	from netip.Addr
	uid  string
}

func (s *Service) findDenial(ctx context.Context, t core.TenantID, m core.Member, tgt target) ([]netip.Addr, *denial) {
	port := sourcePort(tgt.source)
	vnet, gw, err := s.networkOf(ctx, t, tgt.gateway.Name)
	if err != nil || port == 0 {
		return nil, nil
	}
	placement.AddMember(&vnet, gw, m.Address)
	rules := s.evaluator(ctx, t, vnet, m.Host)
	to := certainAddresses(vnet, gw, m, tgt.source, rules)
	var out *denial
	cut := true
	for _, a := range to {
		flow := policy.Flow{Source: m.Address, Destination: a, Protocol: core.ProtocolTCP, DestinationPort: port}
		verdict := rules.Evaluate(flow)
		if verdict.Allowed {
			return to, nil
		}
		cut = cut && !verdict.HasRoute()
		if out == nil {
			out = newDenial(m, tgt.source, rules, flow, verdict)
		}
	}
	if out != nil {
		out.cut = cut
	}
	return to, out
}

func newDenial(m core.Member, src memberapi.Source, rules *policy.Evaluator, f policy.Flow, v policy.Verdict) *denial {
	host, to := src.Parameters["host"], netip.AddrPortFrom(f.Destination, f.DestinationPort)
	why, hint := noRoute(f, v), routeHint(rules, f)
	if by, denied := v.Denial(); denied {
		why, hint = by.String(), checkHint(m.Gateway, host, f.DestinationPort)
	}
	e := errs.New(errs.Unavailable, "connect to %s (%s): %s", host, to, why).WithStep(errs.StepConnect).
		WithHint("%s", hint).On(objectName(core.KindDataSource, src.Name), "")
	return &denial{err: e, to: to}
}

// noRoute says why a flow leads nowhere.
func noRoute(f policy.Flow, v policy.Verdict) string {
	return fmt.Sprintf("no route to %s (%s)", f.Destination, v.Route)
}

func checkHint(gateway, host string, port uint16) string {
	return fmt.Sprintf("\"sluice check -g %s --to %s:%d\" shows every rule on the way", gateway, host, port)
}

// certainAddresses lists the addresses that a source's host stands for, if nobody needs
// to be asked for them: an address, or a name of a private zone. What the network has no
// say in is left out, and so is a name that the member would not come to resolve.
func certainAddresses(v core.GoalVNet, gw *core.Gateway, m core.Member, src memberapi.Source, rules *policy.Evaluator) []netip.Addr {
	host := src.Parameters["host"]
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, a)
	} else if host != "" && len(src.DNSServers) == 0 {
		for _, dns := range askedBy(v, gw, src) {
			if !rules.Evaluate(policy.Flow{Source: m.Address, Destination: dns.Addr(), Protocol: core.ProtocolUDP, DestinationPort: dns.Port()}).Allowed {
				return nil
			}
		}
		addrs = resolver.Addresses(v.Zones, host)
	}
	for _, a := range addrs {
		if !a.Is4() || a == m.Address || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
			return nil
		}
	}
	return addrs
}

// contacts knows which members may have connections to which data sources. A flow that
// was allowed outlives the rule, and a member keeps its connections: where it may have
// one, what the rules say of new ones is not certain to be what a query meets.
type contacts struct {
	since time.Time // members made before may have what nobody here knows of
	mu    sync.Mutex
	of    map[contactKey]*contact
}

type contactKey struct {
	member     string
	generation int64
	uid        string // of the data source
}

type contact struct {
	inflight int
	begun    int64 // requests, ever
	likely   bool  // a connection may be there
	// to lists where it would lead, as far as that is known.
	to []netip.Addr
}

// maxContacts is how many are kept before those of members that are gone are dropped.
const maxContacts = 4096

func newContacts(since time.Time) *contacts {
	return &contacts{since: since, of: map[contactKey]*contact{}}
}

// contact returns the entry of a member and a source. The caller holds mu.
func (c *contacts) contact(m core.Member, uid string, live func(id string, generation int64) bool) *contact {
	key := contactKey{m.ID, m.Generation, uid}
	if c.of[key] == nil {
		if len(c.of) >= maxContacts {
			for k, other := range c.of {
				if other.inflight == 0 && !live(k.member, k.generation) {
					delete(c.of, k)
				}
			}
		}
		c.of[key] = &contact{likely: m.CreatedAt.Before(c.since)}
	}
	return c.of[key]
}

// enter decides about a request and, if it may go, begins it: end must be called with
// what came of it. judge says what a new connection would meet; that counts for a request
// which needs one, and for one whose connection, if there is any, leads where no route
// does any more.
func (c *contacts) enter(m core.Member, uid string, fresh bool, live func(string, int64) bool, judge func() ([]netip.Addr, *denial)) (end func(error), no *denial) {
	to, no := judge()
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.contact(m, uid, live)
	certain := fresh || !at.likely && at.inflight == 0
	if no != nil && (certain || no.cut && at.leadsInto(to)) {
		return nil, no
	}
	if fresh {
		return func(error) {}, nil // it leaves no connection behind
	}
	at.expect(to)
	at.begun++
	alone, number := at.inflight == 0, at.begun
	at.inflight++
	var once sync.Once
	return func(err error) {
		once.Do(func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			at.inflight--
			at.learn(err, alone && at.begun == number)
		})
	}, nil
}

// leadsInto says that a connection can't lead anywhere else.
func (at *contact) leadsInto(to []netip.Addr) bool {
	return len(at.to) > 0 && !slices.ContainsFunc(at.to, func(a netip.Addr) bool { return !slices.Contains(to, a) })
}

// maxExpected bounds the addresses that are remembered of one contact; of one with more,
// none are.
const maxExpected = 16

// expect adds where a new connection may lead. What is not certain makes all unknown.
func (at *contact) expect(to []netip.Addr) {
	none := !at.likely && at.inflight == 0 // so far
	if none {
		at.to = nil
	}
	if known := none || len(at.to) > 0; !known || len(to) == 0 {
		at.to = nil
		return
	}
	for _, a := range to {
		if !slices.Contains(at.to, a) {
			at.to = append(at.to, a)
		}
	}
	if len(at.to) > maxExpected {
		at.to = nil
	}
}

// learn draws from a request's end whether the member has a connection now. One that was
// alone and failed to connect proves that there was none: it would have been taken.
func (at *contact) learn(err error, alone bool) {
	step := ""
	if err != nil {
		step = errs.As(err).Step
	}
	var unsent *notSentError
	switch {
	case errors.As(err, &unsent):
	case step != errs.StepConnect && step != errs.StepResolve:
		at.likely = true
	case alone:
		at.likely = false
	}
}

// admit lets a request to a member go, or returns the denial that it is certain to meet.
// A request that always makes a connection of its own is fresh.
func (s *Service) admit(ctx context.Context, t core.TenantID, g fleet.Grant, tgt target, fresh bool) (func(error), error) {
	end, no := s.contacts.enter(g.Member, tgt.uid, fresh, s.opts.Fleet.Live, func() ([]netip.Addr, *denial) {
		return s.judge(ctx, t, g.Member, tgt)
	})
	if no != nil {
		return nil, no
	}
	return end, nil
}
