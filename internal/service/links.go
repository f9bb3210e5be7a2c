package service

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/validate"
)

// LinkState says whether what holds a subnet can be trusted to let go of it by itself.
type LinkState string

// The states of a link.
const (
	LinkActive  LinkState = "Active"
	LinkLeaving LinkState = "Leaving" // the gateway is gone, teardowns are not confirmed yet
	LinkStale   LinkState = "Stale"   // a host that would have to confirm a teardown is silent
)

// Link is the hold of one gateway on the subnet that it is placed in. It exists while the
// gateway does, and until the teardown of its last member is confirmed. It follows from
// resources and leases and is not stored, so that it can't outlive what it stands for.
type Link struct {
	Name      string    `json:"name"` // VNET/SUBNET/GATEWAY
	VNet      string    `json:"vnet"`
	Subnet    string    `json:"subnet"`
	Owner     string    `json:"owner"` // "Gateway/corp-bi"
	State     LinkState `json:"state"`
	Reason    string    `json:"reason"`
	Addresses []string  `json:"addresses,omitempty"` // that its members hold
	Since     time.Time `json:"since"`

	gateway  string
	declared bool // the gateway exists
	leases   []core.Lease
}

// links lists a tenant's links by name. The leases are as the fleet explains them.
func links(all []core.Stored, leases []core.Lease) []Link {
	byName := map[string]*Link{}
	of := func(vnet, subnet, gateway string, since time.Time) *Link {
		name := strings.Join([]string{vnet, subnet, gateway}, "/")
		l := byName[name]
		if l == nil {
			l = &Link{Name: name, VNet: vnet, Subnet: subnet, Owner: objectName(core.KindGateway, gateway), Since: since, gateway: gateway}
			byName[name] = l
		}
		if since.Before(l.Since) {
			l.Since = since
		}
		return l
	}
	for _, r := range all {
		if g, ok := r.Spec.(*core.Gateway); ok {
			of(g.VNet, g.Subnet, g.Name, r.CreatedAt).declared = true
		}
	}
	for _, lease := range leases {
		if !lease.Ended() {
			l := of(lease.VNet, lease.Subnet, lease.Gateway, lease.AcquiredAt)
			l.leases = append(l.leases, lease)
			l.Addresses = append(l.Addresses, lease.Address.String())
		}
	}
	out := make([]Link, 0, len(byName))
	for _, name := range sortedKeys(byName) {
		byName[name].explain()
		out = append(out, *byName[name])
	}
	return out
}

// explain says in words why the link is there.
func (l *Link) explain() {
	expired := slices.IndexFunc(l.leases, func(x core.Lease) bool { return x.State == core.LeaseExpired })
	parts := []string{"the gateway is placed in the subnet"}
	l.State = LinkActive
	if !l.declared {
		parts, l.State = []string{"the gateway does not exist any more"}, LinkLeaving
	}
	if n := len(l.leases); n > 0 {
		parts = append(parts, fmt.Sprintf("%s held by its members", count(n, "address is", "addresses are")))
	}
	if expired >= 0 {
		l.State = LinkStale
		parts = append(parts, "of "+l.leases[expired].Address.String()+", "+l.leases[expired].Reason)
	} else if !l.declared && len(l.leases) > 0 {
		parts = append(parts, "of "+l.leases[0].Address.String()+", "+l.leases[0].Reason)
	}
	l.Reason = strings.Join(parts, "; ")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// remedy says what takes the link away.
func (l *Link) remedy() string {
	switch {
	case l.State == LinkStale:
		return fmt.Sprintf("start host %s again; or, if it is lost for good, \"sluice delete link %s --force --reason WHY\"", l.leases[0].Host, l.Name)
	case l.declared:
		return fmt.Sprintf("\"sluice delete gateway %s\" first, or place it in another subnet while it is paused", l.gateway)
	}
	return "the link goes when the host confirms the teardown; \"sluice get leases\" shows what is awaited"
}

// refused is the error about a change that the link does not let happen.
func (l *Link) refused(what, field string) *errs.Error {
	return errs.New(errs.Conflict, "%s: it carries a link of %s: %s", what, l.Owner, l.Reason).
		On(objectName(core.KindVirtualNetwork, l.VNet), field).WithHint("%s", l.remedy())
}

// guard finds what an apply would take away under links: each link's subnet stays, with
// its delegation, and with a prefix that has the addresses of its members.
func (a *apply) guard(leases []core.Lease) []*errs.Error {
	var out []*errs.Error
	for _, l := range links(a.have, leases) {
		v, ok := a.set[objectName(core.KindVirtualNetwork, l.VNet)].(*core.VirtualNetwork)
		if !ok || !a.holds(l) {
			continue
		}
		i := slices.IndexFunc(v.Subnets, func(s core.Subnet) bool { return s.Name == l.Subnet })
		if i < 0 {
			out = append(out, l.refused(fmt.Sprintf("subnet %s can't be removed", l.Subnet), "subnets"))
			continue
		}
		sub, field := v.Subnets[i], fmt.Sprintf("subnets[%d].", i)
		if sub.Delegation != core.DelegationGateways {
			out = append(out, l.refused(fmt.Sprintf("the delegation of subnet %s can't be removed", l.Subnet), field+"delegation"))
		}
		if slices.ContainsFunc(l.leases, func(x core.Lease) bool { return !sub.Prefix.Contains(x.Address) }) {
			out = append(out, l.refused(fmt.Sprintf("subnet %s can't move to %s", l.Subnet, sub.Prefix), field+"prefix"))
		}
	}
	return out
}

// holds reports whether a link is one after the apply, too.
func (a *apply) holds(l Link) bool {
	g, ok := a.set[l.Owner].(*core.Gateway)
	return len(l.leases) > 0 || ok && g.VNet == l.VNet && g.Subnet == l.Subnet
}

// withoutEchoes leaves out of the problems of a set what is said better by the links: that
// a gateway's subnet is gone, or not delegated any more.
func withoutEchoes(problems, guarded []*errs.Error, all []Link) []*errs.Error {
	return slices.DeleteFunc(problems, func(p *errs.Error) bool {
		return p.Field == "subnet" && slices.ContainsFunc(all, func(l Link) bool {
			vnet := objectName(core.KindVirtualNetwork, l.VNet)
			return l.Owner == p.Object && slices.ContainsFunc(guarded, func(g *errs.Error) bool { return g.Object == vnet })
		})
	})
}

// subnetStatus is one subnet with its links.
func subnetStatus(v *core.VirtualNetwork, sub core.Subnet, all []Link) SubnetStatus {
	st := SubnetStatus{Name: sub.Name, Delegation: "NotDelegated"}
	switch {
	case sub.Delegation == core.DelegationGateways:
		st.Delegation = "Ready"
	case sub.Delegation != "":
		st.Delegation = "DelegatedToOther"
	}
	for _, l := range all {
		if l.VNet == v.Name && l.Subnet == sub.Name {
			st.Links = append(st.Links, l)
		}
	}
	if len(st.Links) > 0 && st.Delegation == "Ready" {
		st.Delegation = "InUse"
	}
	return st
}

// leaseViews names leases by their address; where several networks have it, by network
// and address.
func leaseViews(leases []core.Lease) []View {
	seen := map[string]int{}
	for _, l := range leases {
		seen[l.Address.String()]++
	}
	return viewsOf(KindLease, leases, func(l core.Lease) string {
		if a := l.Address.String(); seen[a] == 1 {
			return a
		}
		return l.VNet + "/" + l.Address.String()
	})
}

// findLease finds a lease by its address, or by network and address.
func findLease(leases []core.Lease, name string) (core.Lease, error) {
	var found []core.Lease
	var where []string
	for _, l := range leases {
		if whole := l.VNet + "/" + l.Address.String(); name == l.Address.String() || name == whole {
			found, where = append(found, l), append(where, whole)
		}
	}
	switch len(found) {
	case 0:
		return core.Lease{}, errs.New(errs.NotFound, "Lease/%s does not exist", name).On("Lease/"+name, "")
	case 1:
		return found[0], nil
	}
	return core.Lease{}, errs.New(errs.Conflict, "several virtual networks have a lease of %s", name).WithHint("one of %s", strings.Join(where, ", "))
}

// deleteLinks refuses to delete a network under links.
func deleteLinks(all []core.Stored, leases []core.Lease, k core.Kind, name string) error {
	if k != core.KindVirtualNetwork {
		return nil
	}
	for _, l := range links(all, leases) {
		if l.VNet == name {
			return l.refused(fmt.Sprintf("VirtualNetwork/%s can't be deleted, nor can subnet %s", name, l.Subnet), "")
		}
	}
	return nil
}

// blockers words what refers to a resource that was to be deleted.
func blockers(set []core.Resource, k core.Kind, name string) error {
	by := validate.DeleteBlockers(set, k, name)
	if len(by) == 0 {
		return nil
	}
	object := objectName(k, name)
	slices.SortFunc(by, cmp.Compare)
	return errs.New(errs.Conflict, "%s is in use by %s", object, strings.Join(by, ", ")).On(object, "").
		WithHint("delete what uses it first, or apply that without the reference")
}
