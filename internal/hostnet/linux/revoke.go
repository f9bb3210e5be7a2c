package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// strictTracking lets no TCP flow begin in its middle, so that one which was cut does not
// come back through a packet of its other end.
var strictTracking = []sysctl{{key: "netfilter/nf_conntrack_tcp_loose", value: "0", optional: true}}

// rulesOf is the part of a goal that the compiled rules alone depend on.
func rulesOf(g core.GoalVNet) core.GoalVNet {
	out := core.GoalVNet{NSGs: g.NSGs, ASGs: g.ASGs, ServiceTags: g.ServiceTags, NICs: g.NICs}
	for _, s := range g.Subnets {
		out.Subnets = append(out.Subnets, core.Subnet{Name: s.Name, NSG: s.NSG})
	}
	return out
}

// withoutRules is the rest: what namespaces, routes and listeners depend on.
func withoutRules(g core.GoalVNet) core.GoalVNet {
	g.NSGs, g.ASGs, g.ServiceTags, g.NICs = nil, nil, nil, nil
	g.Subnets = slices.Clone(g.Subnets)
	for i := range g.Subnets {
		g.Subnets[i].NSG = ""
	}
	return g
}

// revoke cuts the established flows that an NSG with revoke denies; all others go on.
func (v *vnet) revoke() error {
	r := revocation{evaluator: policy.NewEvaluator(v.goal, v.resolvers()), groups: map[string]bool{}, local: map[netip.Addr]bool{}}
	for _, n := range v.goal.NSGs {
		if n.Revoke {
			r.groups[n.Name] = true
		}
	}
	if len(r.groups) == 0 {
		return nil
	}
	for _, e := range v.goal.Endpoints {
		r.local[e.Address] = true
	}
	err := v.at.do(func() (err error) {
		r.nl, err = netlink.NewHandle(unix.NETLINK_NETFILTER, unix.NETLINK_INET_DIAG)
		return err
	})
	if err != nil {
		return fmt.Errorf("opening the flows of virtual network %s: %w", v.goal.Name, err)
	}
	defer r.nl.Close()
	if err := r.nl.SetSocketTimeout(netlinkTimeout); err != nil {
		return err
	}
	for range 5 {
		_, err = r.nl.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, &r)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("cutting the flows of virtual network %s that its rules deny: %w", v.goal.Name, err)
	}
	if r.cut > 0 {
		v.n.log.Info("flows cut that the new rules deny", "vnet", v.goal.Name, "flows", r.cut)
	}
	return nil
}

// revocation picks flows. It is asked about each of them once.
type revocation struct {
	nl        *netlink.Handle
	evaluator *policy.Evaluator
	groups    map[string]bool // NSGs with revoke
	local     map[netip.Addr]bool
	cut       int
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter. A private endpoint's own
// socket is closed first, while its reset still reaches the member: both ends then know.
func (r *revocation) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	flow, ok := flowOf(f)
	if !ok {
		return false
	}
	d, denied := r.evaluator.Evaluate(flow).Denial()
	if !denied || !r.groups[d.NSG] {
		return false
	}
	if flow.Protocol == core.ProtocolTCP && r.local[flow.Destination] {
		// Without the kernel's help the socket ends by its own time-outs.
		_ = r.nl.SocketDestroy(
			&net.TCPAddr{IP: f.Forward.DstIP, Port: int(f.Forward.DstPort)}, &net.TCPAddr{IP: f.Forward.SrcIP, Port: int(f.Forward.SrcPort)})
	}
	r.cut++
	return true
}

// flowOf is a tracked flow as it began.
func flowOf(f *netlink.ConntrackFlow) (policy.Flow, bool) {
	protocols := map[uint8]core.Protocol{
		unix.IPPROTO_TCP: core.ProtocolTCP, unix.IPPROTO_UDP: core.ProtocolUDP, unix.IPPROTO_ICMP: core.ProtocolICMP,
		unix.IPPROTO_ESP: core.ProtocolESP, unix.IPPROTO_AH: core.ProtocolAH,
	}
	src, ok1 := netip.AddrFromSlice(f.Forward.SrcIP)
	dst, ok2 := netip.AddrFromSlice(f.Forward.DstIP)
	p, ok3 := protocols[f.Forward.Protocol]
	return policy.Flow{
		Source: src.Unmap(), Destination: dst.Unmap(), Protocol: p, SourcePort: f.Forward.SrcPort, DestinationPort: f.Forward.DstPort,
	}, ok1 && ok2 && ok3
}
