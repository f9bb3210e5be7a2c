package host

import (
	"context"

	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// Inventory lists what exists on the machine because of an installation, and why,
// whether or not a host runs.
func Inventory(ctx context.Context, network hostnet.Network, runtime sandbox.Runtime) ([]hostnet.Item, error) {
	items, err := network.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	boxes, err := runtime.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range boxes {
		if b.Blank {
			items = append(items, hostnet.Item{Type: "container", Name: b.ID, Why: whyBlank(b)})
			continue
		}
		why := "member " + b.Labels[labelMember] + " of gateway " + b.Labels[labelGateway]
		if !b.Running {
			why += ", ended: " + b.Exit.Reason
		}
		items = append(items, hostnet.Item{Type: "container", Name: b.ID, Why: why})
	}
	return items, nil
}

func whyBlank(b sandbox.State) string {
	if b.Running {
		return "waits to become a member"
	}
	return "waited to become a member: " + b.Exit.Reason
}
