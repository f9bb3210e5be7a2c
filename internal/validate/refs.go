package validate

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// reference is a field that names another resource; with subnet, a subnet of it.
type reference struct {
	field  string
	kind   core.Kind
	name   string
	subnet bool
}

// referencesOf lists what a resource refers to. A subnet's reference has the name
// "vnet/subnet".
func referencesOf(r core.Resource) []reference {
	switch r := r.(type) {
	case *core.VirtualNetwork:
		var out []reference
		for i, s := range r.Subnets {
			if s.NSG != "" {
				out = append(out, reference{field: at("subnets", i) + ".nsg", kind: core.KindNetworkSecurityGroup, name: s.NSG})
			}
			if s.NATGateway != "" {
				out = append(out, reference{field: at("subnets", i) + ".natGateway", kind: core.KindNATGateway, name: s.NATGateway})
			}
			if s.RouteTable != "" {
				out = append(out, reference{field: at("subnets", i) + ".routeTable", kind: core.KindRouteTable, name: s.RouteTable})
			}
		}
		for i, p := range r.Peerings {
			out = append(out, vnetRef(at("peerings", i)+".remote", p.Remote))
		}
		return out
	case *core.NATGateway:
		return []reference{vnetRef("vnet", r.VNet)}
	case *core.PrivateDNSZone:
		var out []reference
		for i, v := range r.VNets {
			out = append(out, vnetRef(at("vnets", i), v))
		}
		return out
	case *core.PrivateEndpoint:
		return append([]reference{vnetRef("vnet", r.VNet), subnetRef(r.VNet, r.Subnet)}, groupRefs(r.ApplicationSecurityGroups)...)
	case *core.Gateway:
		out := append([]reference{vnetRef("vnet", r.VNet), subnetRef(r.VNet, r.Subnet)}, groupRefs(r.ApplicationSecurityGroups)...)
		if r.NetworkSecurityGroup != "" {
			out = append(out, reference{field: "networkSecurityGroup", kind: core.KindNetworkSecurityGroup, name: r.NetworkSecurityGroup})
		}
		return out
	case *core.DataSource:
		return []reference{{field: "gateway", kind: core.KindGateway, name: r.Gateway}}
	}
	return nil
}

func vnetRef(field, name string) reference {
	return reference{field: field, kind: core.KindVirtualNetwork, name: name}
}

func subnetRef(vnet, subnet string) reference {
	return reference{field: "subnet", kind: core.KindVirtualNetwork, name: vnet + "/" + subnet, subnet: true}
}

// references refuses those that lead nowhere.
func (c *checker) references(r core.Resource) {
	for _, ref := range referencesOf(r) {
		if ref.subnet {
			c.subnetReference(ref)
			continue
		}
		if ref.name == "" {
			c.bad(ref.field, "is missing: the name of a %s", ref.kind)
			continue
		}
		target, ok := c.byName[ref.kind][ref.name]
		if !ok {
			c.bad(ref.field, "there is no %s %q", ref.kind, ref.name).WithHint("%s", known(ref.kind, names(c.byName[ref.kind])))
			continue
		}
		if n, isNAT := target.(*core.NATGateway); isNAT && n.VNet != r.ResourceName() {
			c.bad(ref.field, "NATGateway %q belongs to VirtualNetwork/%s, not to this network", n.Name, n.VNet)
		}
	}
}

func (c *checker) subnetReference(ref reference) {
	vnet, subnet, _ := strings.Cut(ref.name, "/")
	v, ok := get[*core.VirtualNetwork](c.set, core.KindVirtualNetwork, vnet)
	if !ok {
		return // the reference to the network is refused already
	}
	var subnets []string
	for _, s := range v.Subnets {
		subnets = append(subnets, s.Name)
	}
	switch {
	case subnet == "":
		c.bad(ref.field, "is missing: a subnet of %s", objectOf(v))
	case !slices.Contains(subnets, subnet):
		c.bad(ref.field, "%s has no subnet %q", objectOf(v), subnet).WithHint("%s", known("subnet", subnets))
	}
}

// known words which names there would have been; "" for many.
func known[T ~string](what T, names []string) string {
	switch {
	case len(names) == 0:
		return fmt.Sprintf("no %s is declared", what)
	case len(names) > 8:
		return fmt.Sprintf("%d are declared, none by this name", len(names))
	}
	return "declared: " + strings.Join(names, ", ")
}

func names(of map[string]core.Resource) []string {
	out := make([]string, 0, len(of))
	for n := range of {
		out = append(out, n)
	}
	sort.Strings(out)
	return out
}

// DeleteBlockers lists what in the set refers to a resource, each as "Kind/name field":
// while there is any, the resource can't be deleted.
func DeleteBlockers(resources []core.Resource, kind core.Kind, name string) []string {
	s := newSet(resources)
	var out []string
	for _, r := range resources {
		refs := referencesOf(r)
		if n, ok := r.(*core.NetworkSecurityGroup); ok {
			refs = ruleReferences(n)
		}
		for _, ref := range refs {
			if !ref.subnet && ref.kind == kind && ref.name == name {
				out = append(out, objectOf(r)+" "+ref.field)
			}
		}
		if e, ok := r.(*core.PrivateEndpoint); ok && kind == core.KindPrivateDNSZone {
			if zones := s.zonesOf(e); len(zones) == 1 && zones[0].Name == name {
				out = append(out, objectOf(r)+" dnsName")
			}
		}
	}
	return out
}
