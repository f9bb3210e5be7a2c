package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// AddPeer tells the evaluator of a network that this one is connected to, so that it can
// answer with the destination's rules. Without it a flow to the peer is judged by the
// source's rules alone.
func (e *Evaluator) AddPeer(v core.GoalVNet, resolvers []netip.Addr) {
	e.peers[v.Name] = NewEvaluator(v, resolvers)
}

// peerOf finds the connected network whose address space an address is in.
func (e *Evaluator) peerOf(a netip.Addr) (core.GoalPeer, bool) {
	for _, p := range e.vnet.Peers {
		if slices.ContainsFunc(p.AddressSpace, func(s netip.Prefix) bool { return s.Contains(a) }) {
			return p, true
		}
	}
	return core.GoalPeer{}, false
}

func (e *Evaluator) inPeers(a netip.Addr) bool { _, is := e.peerOf(a); return is }

// inTag says that the tag VirtualNetwork matches an address.
func (e *Evaluator) inTag(a netip.Addr) bool { return e.inVirtualNetwork(a) || e.inPeers(a) }

// peerRoute is the route to an address of a connected network: it leads there, and from
// there to one who holds the address.
func (q question) peerRoute() (string, bool) {
	peer, is := q.peerOf(q.flow.Destination)
	if !is {
		return "", false
	}
	far, known := q.Evaluator.peers[peer.Name]
	if !known {
		return "Peering " + peer.Name, true
	}
	if slices.Contains(far.resolvers, q.flow.Destination) {
		return fmt.Sprintf("%sthe resolver %s answers virtual network %s only", routeNone, q.flow.Destination, peer.Name), true
	}
	there := question{Evaluator: far, flow: q.flow}
	if r := there.localRoute(); r != "VnetLocal" {
		return r, true
	}
	return "Peering " + peer.Name, true
}

// inboundThere asks the rules of the destination's network, if it is another one.
func (q question) inboundThere(v *Verdict) {
	name, is := strings.CutPrefix(v.Route, "Peering ")
	far, known := q.Evaluator.peers[name]
	if !is || !known || denied(*v) {
		return
	}
	if to, inside := far.subnetOf(q.flow.Destination); inside {
		question{Evaluator: far, flow: q.flow}.inbound(v, to)
	}
}

// fromPeer judges a flow that a peer sends, by the rules that are this network's.
func (q question) fromPeer() Verdict {
	to, inside := q.subnetOf(q.flow.Destination)
	if !inside {
		return Verdict{Route: fmt.Sprintf("%s%s is in no subnet of virtual network %s: peering is not transitive", routeNone, q.flow.Destination, q.vnet.Name)}
	}
	v := Verdict{Route: q.localRoute()}
	q.inbound(&v, to)
	v.Allowed = !denied(v) && v.HasRoute()
	return v
}

// peerSpans are the address spaces of the connected networks: with the network's own they
// are the tag VirtualNetwork.
func peerSpans(v core.GoalVNet) []span {
	var out []span
	for _, p := range v.Peers {
		for _, s := range p.AddressSpace {
			out = append(out, prefixSpan(s))
		}
	}
	return out
}

// peers lists, by name, the connected networks that have an interface in the namespace.
func (c *vnetCompiler) peers() []core.GoalPeer {
	var out []core.GoalPeer
	for _, p := range c.in.VNet.Peers {
		if c.in.PeerInterfaces[p.UID] != "" {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b core.GoalPeer) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func spaceText(list []netip.Prefix) string {
	var spans []span
	for _, p := range list {
		spans = append(spans, prefixSpan(p))
	}
	return oneOf(texts(merge(spans), span.addressText))
}

// fromPeers lets in, from each peer, what comes from its own addresses and is meant for
// this network's: peering is not transitive.
func (c *vnetCompiler) fromPeers() {
	for _, p := range c.peers() {
		c.linef(2, `iifname %q ip saddr %s ip daddr %s counter accept comment "%s"`, c.in.PeerInterfaces[p.UID],
			spaceText(p.AddressSpace), spaceText(c.in.VNet.AddressSpace), shorten("from peer "+plain(p.Name), maxComment))
	}
}

// toPeers lets the network's own addresses reach each peer's.
func (c *vnetCompiler) toPeers() {
	for _, p := range c.peers() {
		c.linef(2, `oifname %q ip saddr %s ip daddr %s counter accept comment "%s"`, c.in.PeerInterfaces[p.UID],
			spaceText(c.in.VNet.AddressSpace), spaceText(p.AddressSpace), shorten("to peer "+plain(p.Name), maxComment))
	}
}

// beginners gives the condition under which a flow may not begin.
func (c *vnetCompiler) beginners() string {
	condition := "iifname != @members"
	var names []string
	for _, p := range c.peers() {
		names = append(names, fmt.Sprintf("%q", c.in.PeerInterfaces[p.UID]))
	}
	if len(names) > 0 {
		condition += " iifname != " + oneOf(names)
	}
	return condition
}

// resolversAreOurs keeps the resolver from answering other networks.
func (c *vnetCompiler) resolversAreOurs() {
	for _, p := range c.peers() {
		c.linef(2, `iifname %q ip daddr @resolvers counter drop comment "%s"`, c.in.PeerInterfaces[p.UID],
			shorten("the resolver does not answer peer "+plain(p.Name), maxComment))
	}
}

func checkPeers(in VNetInput) *errs.Error {
	for i, p := range in.VNet.Peers {
		for _, s := range p.AddressSpace {
			if !s.IsValid() || !s.Addr().Is4() {
				return invalid(fmt.Sprintf("peers[%d]", i), "peer %s: %s is not an IPv4 prefix", p.Name, s)
			}
			if slices.ContainsFunc(in.VNet.AddressSpace, s.Overlaps) {
				return invalid(fmt.Sprintf("peers[%d]", i), "%s of peer %s overlaps the address space of virtual network %s", s, p.Name, in.VNet.Name)
			}
		}
		if name := in.PeerInterfaces[p.UID]; name != "" {
			if err := checkInterface(name); err != nil {
				return err
			}
		}
	}
	return nil
}
