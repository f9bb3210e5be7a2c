package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// route says where a flow of the subnet leads, the rules aside.
func (q question) route(from core.Subnet) string {
	dst := q.flow.Destination
	if q.kind == toDNS {
		return "VnetLocal"
	}
	if q.kind == toTunnel {
		return "tunnel"
	}
	if !dst.Is4() {
		return routeNone + "IPv6 is not carried"
	}
	if slices.Contains(q.resolvers, dst) {
		return q.localRoute()
	}
	if r, is := q.userRoute(from); is {
		return r
	}
	if q.inSpace(dst) {
		return q.localRoute()
	}
	if r, is := q.peerRoute(); is {
		return r
	}
	if r, is := q.uplinkRoute(); is {
		return r
	}
	if kind := unroutable(dst); kind != "" {
		return fmt.Sprintf("%s%s is %s address", routeNone, dst, kind)
	}
	return q.natRoute(from)
}

func (q question) localRoute() string {
	dst := q.flow.Destination
	if slices.Contains(q.resolvers, dst) {
		return fmt.Sprintf("%sthe resolver %s answers on port %d only", routeNone, dst, dnsPort)
	}
	if r, is := q.endpointRoute(); is {
		return r
	}
	s, ok := q.subnetOf(dst)
	switch {
	case !ok:
		return fmt.Sprintf("%s%s is in no subnet of virtual network %s", routeNone, dst, q.vnet.Name)
	case reserved(s.Prefix, dst):
		return fmt.Sprintf("%s%s is reserved in subnet %s", routeNone, dst, s.Name)
	}
	return cmp.Or(q.elsewhere(dst), "VnetLocal")
}

// endpointRoute is the route to a private endpoint, if the destination is one's address.
func (q question) endpointRoute() (string, bool) {
	var ports []string
	var name string
	for _, p := range q.vnet.Endpoints {
		if p.Address != q.flow.Destination {
			continue
		}
		if q.flow.Protocol == core.ProtocolTCP && p.Port == q.flow.DestinationPort {
			return "VnetLocal", true
		}
		name = p.Name
		ports = append(ports, fmt.Sprint(p.Port))
	}
	if len(ports) == 0 {
		return "", false
	}
	return fmt.Sprintf("%sprivate endpoint %s answers on TCP port %s only", routeNone, name, strings.Join(ports, ", ")), true
}

func (q question) natRoute(from core.Subnet) string {
	name := from.NATGateway
	known := slices.ContainsFunc(q.vnet.NATGateways, func(g core.GoalNATGateway) bool { return g.Name == name })
	switch {
	case name == "":
		return fmt.Sprintf("%s%s is outside the virtual network and subnet %s names no NAT gateway", routeNone, q.flow.Destination, from.Name)
	case !known:
		return fmt.Sprintf("%sNAT gateway %s of subnet %s is not known", routeNone, name, from.Name)
	case !q.hasPorts() && q.flow.Protocol != core.ProtocolICMP:
		return fmt.Sprintf("%sNAT gateway %s carries TCP, UDP and ping only", routeNone, name)
	}
	return "NAT gateway " + name
}

// reserved reports whether no member or endpoint can hold the address: the first four
// of a subnet and its last.
func reserved(p netip.Prefix, a netip.Addr) bool {
	first := p.Masked().Addr()
	for range 4 {
		if a == first {
			return true
		}
		first = first.Next()
	}
	return !p.Contains(a.Next())
}
