package service

import (
	"fmt"
	"slices"

	"github.com/sluice-gateway/sluice/internal/core"
)

// NATGatewayStatus is the status of a NAT gateway.
type NATGatewayStatus struct {
	ResourceStatus
	// State is Unused (no subnet names it), Unknown (no connected host has told of it), Up,
	// Degraded (a condition holds) or Down.
	State       string             `json:"state"`
	Reason      string             `json:"reason,omitempty"` // of the first condition
	Hint        string             `json:"hint,omitempty"`
	Connections uint64             `json:"connections"` // tracked now, on all hosts
	PortsUsed   string             `json:"portsUsed,omitempty"`
	Hosts       []NATGatewayOnHost `json:"hosts,omitempty"`
}

// NATGatewayOnHost is what one host told of a NAT gateway.
type NATGatewayOnHost struct {
	Host string `json:"host"`
	core.NATGatewayReport
}

// natViews puts what hosts told into the status of NAT gateways.
func natViews(views []View, all []core.Stored, t core.TenantID, hosts []core.Host) {
	for i, v := range views {
		if base, ok := v.Status.(ResourceStatus); ok {
			views[i].Status = natStatus(v.Object.(*core.NATGateway), t, base, all, hosts)
		}
	}
}

func natStatus(nat *core.NATGateway, t core.TenantID, base ResourceStatus, all []core.Stored, hosts []core.Host) NATGatewayStatus {
	out := NATGatewayStatus{ResourceStatus: base, State: "Unused"}
	if !slices.ContainsFunc(all, func(o core.Stored) bool { return leavesBy(o.Spec, nat) }) {
		out.Reason = "no subnet of " + nat.VNet + " names it"
		return out
	}
	out.State, out.Reason = "Unknown", "no connected host has told of it yet: hosts make it with the first gateway in its network"
	for _, h := range hosts {
		for _, n := range h.NATGateways {
			if n.UID == base.UID && n.Tenant == t {
				n.UID, n.Tenant, n.VNet, n.Name = "", "", "", ""
				out.Hosts = append(out.Hosts, NATGatewayOnHost{h.Name, n})
			}
		}
	}
	out.judge()
	return out
}

func leavesBy(r core.Resource, nat *core.NATGateway) bool {
	v, ok := r.(*core.VirtualNetwork)
	return ok && v.Name == nat.VNet && slices.ContainsFunc(v.Subnets, func(s core.Subnet) bool { return s.NATGateway == nat.Name })
}

// judge sums up what the hosts told.
func (st *NATGatewayStatus) judge() {
	if len(st.Hosts) == 0 {
		return
	}
	up, percent := 0, -1
	st.State, st.Reason = "Up", ""
	for _, h := range st.Hosts {
		st.Connections += h.Connections.Total
		if h.Up {
			up++
		}
		for _, c := range h.Conditions {
			if st.Reason == "" {
				st.Reason, st.Hint = fmt.Sprintf("host %s: %s", h.Host, c.Message), c.Hint
			}
			st.State = "Degraded"
		}
		for _, p := range h.Ports {
			if share := 100 * p.Used / max(1, p.Of); share > percent {
				percent, st.PortsUsed = share, fmt.Sprintf("%d %% (%s %s)", share, p.Address, p.Protocol)
			}
		}
	}
	switch {
	case up == 0:
		st.State = "Down"
	case up < len(st.Hosts):
		st.State = "Degraded"
	}
}
