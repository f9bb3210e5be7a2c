package policy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// checkVNet refuses what no network can have and what would not be valid text.
func checkVNet(in VNetInput) error {
	object := "VirtualNetwork/" + in.VNet.Name
	for _, check := range []func(VNetInput) *errs.Error{checkSpace, checkUplinks, checkGroups, checkSubnets, checkNames, checkNICs, checkPorts, checkListeners, checkNAT, checkPeers} {
		if err := check(in); err != nil {
			if err.Object == "" {
				err.Object = object
			}
			return err
		}
	}
	return nil
}

func checkSpace(in VNetInput) *errs.Error {
	for i, p := range in.VNet.AddressSpace {
		if !p.IsValid() || !p.Addr().Is4() {
			return invalid(fmt.Sprintf("addressSpace[%d]", i), "virtual network %s: %s is not an IPv4 prefix", in.VNet.Name, p)
		}
	}
	return nil
}

func checkGroups(in VNetInput) *errs.Error {
	names := map[string]bool{}
	for i, g := range in.VNet.NSGs {
		if names[g.Name] {
			return invalid(fmt.Sprintf("nsgs[%d]", i), "network security group %s is there twice", g.Name)
		}
		names[g.Name] = true
		for _, r := range g.Rules {
			if r.Direction != core.Inbound && r.Direction != core.Outbound {
				return invalidRule(g.Name, r, invalid("direction", "%q is not a direction", r.Direction))
			}
			if r.Access != core.Allow && r.Access != core.Deny {
				return invalidRule(g.Name, r, invalid("access", "%q is not an access", r.Access))
			}
		}
	}
	return nil
}

func checkSubnets(in VNetInput) *errs.Error {
	for i, s := range in.VNet.Subnets {
		field := fmt.Sprintf("subnets[%d]", i)
		if !s.Prefix.IsValid() || !s.Prefix.Addr().Is4() {
			return invalid(field+".prefix", "subnet %s: %s is not an IPv4 prefix", s.Name, s.Prefix)
		}
		for _, other := range in.VNet.Subnets[:i] {
			if other.Prefix.Overlaps(s.Prefix) {
				return invalid(field+".prefix", "subnets %s (%s) and %s (%s) overlap", other.Name, other.Prefix, s.Name, s.Prefix)
			}
		}
		if !slices.ContainsFunc(in.VNet.AddressSpace, func(p netip.Prefix) bool {
			return p.Overlaps(s.Prefix) && p.Bits() <= s.Prefix.Bits()
		}) {
			return invalid(field+".prefix", "subnet %s (%s) is not inside the address space", s.Name, s.Prefix)
		}
		if s.NSG != "" && !slices.ContainsFunc(in.VNet.NSGs, func(n core.NetworkSecurityGroup) bool { return n.Name == s.NSG }) {
			return invalid(field+".nsg", "subnet %s names network security group %s, which is not there", s.Name, s.NSG)
		}
	}
	return nil
}

// checkNames refuses application security groups and service tags that a rule could not
// tell apart.
func checkNames(in VNetInput) *errs.Error {
	seen := map[string]bool{
		anyAddress: true, TagVirtualNetwork: true, TagInternet: true, TagLoadBalancer: true, TagPlatformDNS: true, TagPlatformTunnel: true,
	}
	for i, g := range in.VNet.ASGs {
		field := fmt.Sprintf("asgs[%d]", i)
		if seen[g.Name] || g.Name == "" {
			return invalid(field, "application security group %q: the name is taken", g.Name)
		}
		for _, a := range g.Addresses {
			if !a.Is4() {
				return invalid(field, "application security group %s: %s is not an IPv4 address", g.Name, a)
			}
		}
		seen[g.Name] = true
	}
	for i, t := range in.VNet.ServiceTags {
		if seen[t.Name] || t.Name == "" {
			return invalid(fmt.Sprintf("serviceTags[%d]", i), "service tag %q: the name is taken", t.Name)
		}
		seen[t.Name] = true
	}
	return nil
}

func checkNICs(in VNetInput) *errs.Error {
	groups, seen := map[string]bool{}, map[netip.Addr]bool{}
	for _, g := range in.VNet.NSGs {
		groups[g.Name] = true
	}
	for i, n := range in.VNet.NICs {
		field := fmt.Sprintf("nics[%d]", i)
		switch {
		case !n.Address.Is4() || seen[n.Address]:
			return invalid(field, "the NIC of gateway %s: %s is not an address of its own", n.Gateway, n.Address)
		case !groups[n.NSG]:
			return invalid(field, "the NIC of gateway %s names network security group %s, which is not there", n.Gateway, n.NSG)
		}
		seen[n.Address] = true
	}
	return nil
}

func checkPorts(in VNetInput) *errs.Error {
	interfaces, addresses := map[string]bool{}, map[netip.Addr]bool{}
	for _, p := range in.Ports {
		if err := checkInterface(p.Interface); err != nil {
			return err
		}
		if hw, err := net.ParseMAC(p.MAC); err != nil || len(hw) != 6 {
			return invalid("", "interface %s: %q is not a MAC address", p.Interface, p.MAC)
		}
		i := slices.IndexFunc(in.VNet.Subnets, func(s core.Subnet) bool { return s.Name == p.Subnet })
		if i < 0 || !in.VNet.Subnets[i].Prefix.Contains(p.Address) {
			return invalid("", "interface %s: the address %s is not in subnet %q", p.Interface, p.Address, p.Subnet)
		}
		if interfaces[p.Interface] || addresses[p.Address] {
			return invalid("", "interface %s, address %s: one of them is held twice", p.Interface, p.Address)
		}
		interfaces[p.Interface], addresses[p.Address] = true, true
	}
	return nil
}

func checkListeners(in VNetInput) *errs.Error {
	held := map[netip.Addr]string{}
	for _, p := range in.Ports {
		held[p.Address] = p.Interface
	}
	for i, e := range in.VNet.Endpoints {
		field := fmt.Sprintf("endpoints[%d]", i)
		if !e.Address.Is4() || e.Port == 0 {
			return invalid(field, "private endpoint %s: %s, port %d is not an address and port to listen on", e.Name, e.Address, e.Port)
		}
		if other := held[e.Address]; other != "" {
			return invalid(field, "private endpoint %s: interface %s holds its address %s", e.Name, other, e.Address)
		}
	}
	for _, a := range in.Resolvers {
		if !a.Is4() {
			return invalid("", "the resolver's address %s is not IPv4", a)
		}
	}
	return nil
}

func checkNAT(in VNetInput) *errs.Error {
	owner := map[string]string{}
	for _, p := range in.Ports {
		owner[p.Interface] = "a member"
	}
	for name, iface := range in.NATInterfaces {
		if iface == "" {
			continue
		}
		if err := checkInterface(iface); err != nil {
			return err
		}
		if owner[iface] != "" {
			return invalid("", "interface %s leads to NAT gateway %s and to %s", iface, name, owner[iface])
		}
		owner[iface] = "NAT gateway " + name
	}
	return nil
}

// invalidRule completes an error about a field of a rule.
func invalidRule(nsg string, r core.SecurityRule, cause *errs.Error) *errs.Error {
	err := errs.New(errs.Invalid, "rule %s of network security group %s: %s", r.Name, nsg, cause.Message)
	return err.On("NetworkSecurityGroup/"+nsg, "rules["+r.Name+"]."+cause.Field)
}

// checkInterface refuses what the kernel would, and the star, which nftables reads as a
// wildcard.
func checkInterface(name string) *errs.Error {
	if name == "" || len(name) > 15 || plain(name) != name || strings.ContainsAny(name, " /:*") {
		return invalid("", "%q is not the name of an interface", name)
	}
	return nil
}

// canonicalMAC writes a checked address as nftables does.
func canonicalMAC(s string) string {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return s
	}
	return hw.String()
}
