package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Evaluate says what the virtual network's rules and routes do with the flow. For many
// flows of one network, an Evaluator reads the rules once.
func Evaluate(v core.GoalVNet, resolvers []netip.Addr, f Flow) Verdict {
	return NewEvaluator(v, resolvers).Evaluate(f)
}

// Evaluator answers for the flows of one virtual network. It may be used from several
// goroutines at once.
type Evaluator struct {
	vnet      core.GoalVNet
	resolvers []netip.Addr
	nics      map[netip.Addr]core.GoalNIC
	groups    map[string]*group
	routes    map[string][]core.EffectiveRoute // by subnet
	peers     map[string]*Evaluator            // by name
	host      string                           // on which the flows begin; "" where that is not known
	holders   map[netip.Addr]string            // the host of the member that has an address
}

// NewEvaluator reads the rules of a virtual network. Resolvers are the addresses on which
// its resolver answers.
func NewEvaluator(v core.GoalVNet, resolvers []netip.Addr) *Evaluator {
	e := &Evaluator{vnet: v, resolvers: resolvers, nics: map[netip.Addr]core.GoalNIC{}, groups: map[string]*group{}}
	e.routes, e.peers = map[string][]core.EffectiveRoute{}, map[string]*Evaluator{}
	for _, s := range v.Subnets {
		e.routes[s.Name] = EffectiveRoutes(v, s)
	}
	for _, n := range v.NICs {
		e.nics[n.Address] = n
	}
	for _, n := range v.NSGs {
		e.groups[n.Name] = e.read(n)
	}
	return e
}

// Evaluate says what happens to the flow. Whether someone holds the destination address
// is not known here: an address of a subnet that is neither reserved nor an endpoint's
// counts as a member's.
func (e *Evaluator) Evaluate(f Flow) Verdict {
	q := question{Evaluator: e, flow: f}
	from, ok := q.subnetOf(f.Source)
	if !ok && q.inPeers(f.Source) {
		return q.fromPeer()
	}
	if !ok {
		return Verdict{Route: fmt.Sprintf("%sthe source %s is in no subnet of virtual network %s", routeNone, f.Source, e.vnet.Name)}
	}
	q.kind = q.kindOf()
	var v Verdict
	v.Route = q.route(from)
	q.outbound(&v, from)
	if to, inside := q.subnetOf(f.Destination); inside && q.kind == ordinary && !denied(v) {
		q.inbound(&v, to)
	}
	q.inboundThere(&v)
	v.Allowed = !denied(v) && v.HasRoute()
	return v
}

func denied(v Verdict) bool {
	_, is := v.Denial()
	return is
}

// kind says which rules are asked about a flow.
type kind int

const (
	ordinary kind = iota
	toDNS         // a question to the resolver: rules that name PlatformDNS
	toTunnel      // to the relay: rules that name PlatformTunnel
)

// tag is what a rule must name as a destination to be asked about platform traffic.
func (k kind) tag() string {
	if k == toDNS {
		return TagPlatformDNS
	}
	return TagPlatformTunnel
}

// question is one flow, put to an Evaluator.
type question struct {
	*Evaluator
	flow Flow
	kind kind
}

func (q question) kindOf() kind {
	switch {
	case slices.Contains(q.resolvers, q.flow.Destination) && q.flow.DestinationPort == dnsPort && q.hasPorts():
		return toDNS
	case q.flow.Destination.String() == TunnelAddress && q.flow.Protocol == core.ProtocolTCP:
		return toTunnel
	}
	return ordinary
}

func (q question) hasPorts() bool {
	return q.flow.Protocol == core.ProtocolTCP || q.flow.Protocol == core.ProtocolUDP
}

func (e *Evaluator) subnetOf(a netip.Addr) (core.Subnet, bool) {
	for _, s := range e.vnet.Subnets {
		if s.Prefix.Contains(a) {
			return s, true
		}
	}
	return core.Subnet{}, false
}

// outbound asks the source's own NSG, then its subnet's.
func (q question) outbound(v *Verdict, s core.Subnet) {
	if n, ok := q.nics[q.flow.Source]; ok {
		q.decide(v, n.NSG, Decision{Level: core.LevelNIC, Gateway: n.Gateway, Subnet: s.Name, Direction: core.Outbound})
	}
	if !denied(*v) {
		q.decide(v, s.NSG, Decision{Level: core.LevelSubnet, Subnet: s.Name, Direction: core.Outbound})
	}
}

// inbound asks the NSG of the destination's subnet, then the destination's own.
func (q question) inbound(v *Verdict, s core.Subnet) {
	q.decide(v, s.NSG, Decision{Level: core.LevelSubnet, Subnet: s.Name, Direction: core.Inbound})
	if n, ok := q.nics[q.flow.Destination]; ok && !denied(*v) {
		q.decide(v, n.NSG, Decision{Level: core.LevelNIC, Gateway: n.Gateway, Subnet: s.Name, Direction: core.Inbound})
	}
}

// decide appends what an NSG says at one level, if there is one that does.
func (q question) decide(v *Verdict, nsg string, d Decision) {
	if nsg == "" {
		return
	}
	g := q.groups[nsg]
	if g == nil {
		v.Route = fmt.Sprintf("%snetwork security group %s of %s is not known", routeNone, nsg, d.place())
		return
	}
	rules := g.inbound
	if d.Direction == core.Outbound {
		rules = g.outbound
	}
	for _, r := range rules {
		if q.matches(r) {
			d.NSG, d.Rule, d.Priority, d.Access = nsg, r.name, r.priority, r.access
			v.Decisions = append(v.Decisions, d)
			return
		}
	}
}

func (q question) matches(r *rule) bool {
	if q.kind != ordinary && (r.isDefault || !slices.Contains(r.names, q.kind.tag())) {
		return false
	}
	if r.protocol != core.ProtocolAny && r.protocol != q.flow.Protocol {
		return false
	}
	return r.source.has(q.flow.Source) && (q.kind == toTunnel || r.destination.has(q.flow.Destination)) &&
		q.portMatches(r.sourcePorts, q.flow.SourcePort) && q.portMatches(r.destinationPorts, q.flow.DestinationPort)
}

func (q question) portMatches(ports *portList, port uint16) bool {
	return ports == nil || q.hasPorts() && slices.ContainsFunc(ports.ranges, func(r [2]uint16) bool { return r[0] <= port && port <= r[1] })
}

func (e *Evaluator) inSpace(a netip.Addr) bool {
	return slices.ContainsFunc(e.vnet.AddressSpace, func(p netip.Prefix) bool { return p.Contains(a) })
}

// unroutable says what kind of address a is if nothing may be sent to it outside the
// virtual network, and "" if it is an ordinary one.
func unroutable(a netip.Addr) string {
	switch {
	case a.IsLoopback():
		return "a loopback"
	case a.IsLinkLocalUnicast():
		return "a link-local"
	case a.IsMulticast():
		return "a multicast"
	}
	return ""
}
