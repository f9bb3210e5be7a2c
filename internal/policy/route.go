package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// route says where a flow of the subnet leads, the rules aside.
func (e evaluator) route(from core.Subnet) string {
	dst := e.flow.Destination
	if !dst.Is4() {
		return routeNone + "IPv6 is not carried"
	}
	if e.inSpace(dst) || slices.Contains(e.resolvers, dst) {
		return e.localRoute()
	}
	if kind := unroutable(dst); kind != "" {
		return fmt.Sprintf("%s%s is %s address", routeNone, dst, kind)
	}
	return e.natRoute(from)
}

func (e evaluator) localRoute() string {
	dst := e.flow.Destination
	if slices.Contains(e.resolvers, dst) {
		return fmt.Sprintf("%sthe resolver %s answers on port %d only", routeNone, dst, dnsPort)
	}
	if r, is := e.endpointRoute(); is {
		return r
	}
	s, ok := e.subnetOf(dst)
	switch {
	case !ok:
		return fmt.Sprintf("%s%s is in no subnet of virtual network %s", routeNone, dst, e.vnet.Name)
	case reserved(s.Prefix, dst):
		return fmt.Sprintf("%s%s is reserved in subnet %s", routeNone, dst, s.Name)
	}
	return "VnetLocal"
}

// endpointRoute is the route to a private endpoint, if the destination is one's address.
func (e evaluator) endpointRoute() (string, bool) {
	var ports []string
	var name string
	for _, p := range e.vnet.Endpoints {
		if p.Address != e.flow.Destination {
			continue
		}
		if e.flow.Protocol == core.ProtocolTCP && p.Port == e.flow.DestinationPort {
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

func (e evaluator) natRoute(from core.Subnet) string {
	name := from.NATGateway
	known := slices.ContainsFunc(e.vnet.NATGateways, func(g core.GoalNATGateway) bool { return g.Name == name })
	switch {
	case name == "":
		return fmt.Sprintf("%s%s is outside the virtual network and subnet %s names no NAT gateway", routeNone, e.flow.Destination, from.Name)
	case !known:
		return fmt.Sprintf("%sNAT gateway %s of subnet %s is not known", routeNone, name, from.Name)
	case !e.hasPorts() && e.flow.Protocol != core.ProtocolICMP:
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
