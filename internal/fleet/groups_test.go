package fleet

import (
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/store"
)

// TestEveryHostHearsOfGroupsMembers: the address of a member counts in its group on the
// other hosts too, from its placement to its end.
func TestEveryHostHearsOfGroupsMembers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(func(tx store.Tx) error {
		v, err := tx.GetResource(tenant, core.KindVirtualNetwork, "corp")
		if err != nil {
			return err
		}
		v.Spec.(*core.VirtualNetwork).Subnets[0].NSG = "rules"
		g, err := tx.GetResource(tenant, core.KindGateway, "corp-bi")
		if err != nil {
			return err
		}
		g.Spec.(*core.Gateway).ApplicationSecurityGroups = []string{"bi"}
		group := core.Stored{Tenant: tenant, UID: "a1", Version: 1, Spec: &core.ApplicationSecurityGroup{Name: "bi"}}
		nsg := core.Stored{Tenant: tenant, UID: "n1", Version: 1, Spec: &core.NetworkSecurityGroup{
			Name: "rules", Rules: []core.SecurityRule{{Name: "r", Priority: 100, Source: []string{"bi"}}},
		}}
		for _, stored := range []core.Stored{v, g, group, nsg} {
			if err := tx.PutResource(stored); err != nil {
				return err
			}
		}
		return nil
	})
	hosts := []*scripted{r.host("a", nil), r.host("b", nil)}
	grouped := func(want int) func() bool {
		return func() bool {
			for _, h := range hosts {
				h.mu.Lock()
				got := -1
				if n := len(h.goals); n > 0 {
					for _, v := range h.goals[n-1].VNets {
						for _, g := range v.ASGs {
							got = len(g.Addresses)
						}
					}
				}
				h.mu.Unlock()
				if got != want {
					return false
				}
			}
			return true
		}
	}
	r.eventually("both hosts have the group, empty", grouped(0))
	g := r.acquire()
	r.eventually("both hosts have the member's address in the group", grouped(1))
	g.Release()
	r.pause("test")
	r.eventually("both hosts have the group, empty again", grouped(0))
}
