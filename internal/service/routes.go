package service

import (
	"fmt"

	"github.com/sluice-gateway/sluice/internal/core"
)

// PeeringStatus is one peering in the status of a virtual network.
type PeeringStatus struct {
	Name   string            `json:"name"`
	Remote string            `json:"remote"`
	State  core.PeeringState `json:"state"`
	Reason string            `json:"reason,omitempty"`
}

func peeringStatus(v *core.VirtualNetwork, sn *snapshot) []PeeringStatus {
	var out []PeeringStatus
	for _, p := range v.Peerings {
		remote, _ := sn.byName[core.KindVirtualNetwork][p.Remote].Spec.(*core.VirtualNetwork)
		st := PeeringStatus{Name: p.Name, Remote: p.Remote, State: v.StateOf(p, remote)}
		if st.State != core.PeeringConnected {
			st.Reason = fmt.Sprintf("VirtualNetwork/%s has no peering with remote %s", p.Remote, v.Name)
		}
		out = append(out, st)
	}
	return out
}
