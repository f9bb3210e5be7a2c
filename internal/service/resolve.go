package service

import (
	"fmt"
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/placement"
	"github.com/sluice-gateway/sluice/internal/policy"
)

const dnsPort = 53

// explainResolve adds to the error of a name that was not resolved which rules, or which
// missing route, stand between the member and the DNS servers that it asked.
func explainResolve(v core.GoalVNet, gw *core.Gateway, m core.Member, src memberapi.Source, e *errs.Error) error {
	out := *e
	eval := func(to netip.AddrPort) policy.Verdict {
		return policy.Evaluate(v, resolvers(v), policy.Flow{
			Source: m.Address, Destination: to.Addr(), Protocol: core.ProtocolUDP, DestinationPort: to.Port(),
		})
	}
	for _, to := range askedBy(v, gw, src) {
		verdict := eval(to)
		if denial, denied := verdict.Denial(); denied {
			out.Message += fmt.Sprintf("; questions to %s are %s", to, denial)
			out.Hint = fmt.Sprintf("\"sluice check -g %s --protocol udp --dry --to %s\" shows every rule on the way", m.Gateway, to)
		} else if !verdict.HasRoute() {
			out.Message += fmt.Sprintf("; no route to %s (%s)", to.Addr(), verdict.Route)
			out.Hint = "give the subnet a NAT gateway, or name DNS servers that the network reaches"
		}
	}
	return &out
}

// askedBy lists the servers that a member asks for a source's name.
func askedBy(v core.GoalVNet, gw *core.Gateway, src memberapi.Source) (out []netip.AddrPort) {
	for _, s := range src.DNSServers {
		if a, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, a)
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, sub := range v.Subnets {
		if sub.Name == gw.Subnet {
			out = append(out, netip.AddrPortFrom(placement.Resolvers(sub.Prefix)[0], dnsPort))
		}
	}
	return out
}
