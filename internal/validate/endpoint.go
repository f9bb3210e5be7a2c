package validate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

func (c *checker) endpoint(e *core.PrivateEndpoint) {
	c.label("name", e.Name)
	if _, _, why := hostPort(e.Target); why != "" {
		if e.Target == "" {
			why = "is missing: host:port, as the host reaches the data service"
			c.bad("target", "%s", why)
		} else {
			c.bad("target", "%q: %s", e.Target, why)
		}
	}
	c.endpointAddress(e)
	c.endpointName(e)
	c.memberships(e.ApplicationSecurityGroups)
}

func (c *checker) endpointAddress(e *core.PrivateEndpoint) {
	s, ok := c.subnet(e.VNet, e.Subnet)
	if ok && s.Delegation != "" {
		c.bad("subnet", "subnet %q is delegated to %s and holds nothing else", s.Name, s.Delegation).
			WithHint("place the endpoint in a subnet without a delegation")
	}
	if !e.Address.IsValid() {
		return
	}
	if !e.Address.Is4() {
		c.bad("address", "%s is not IPv4: virtual networks are IPv4 only", e.Address)
		return
	}
	if ok && s.Prefix.IsValid() {
		switch {
		case !s.Prefix.Contains(e.Address):
			c.bad("address", "%s is not in the prefix %s of subnet %q", e.Address, s.Prefix, s.Name)
		case Reserved(s.Prefix, e.Address):
			c.bad("address", "%s is reserved: the first four addresses of %s and the last", e.Address, s.Prefix)
		}
	}
	for _, other := range all[*core.PrivateEndpoint](c.set) {
		if other == e {
			break
		}
		if other.VNet == e.VNet && other.Address == e.Address {
			c.bad("address", "%s is the address of %s", e.Address, objectOf(other))
		}
	}
}

func (c *checker) endpointName(e *core.PrivateEndpoint) {
	if e.DNSName == "" {
		return
	}
	if why := dnsNameProblem(e.DNSName); why != "" {
		c.bad("dnsName", "%q %s", e.DNSName, why)
		return
	}
	if len(c.zonesOf(e)) > 0 {
		return
	}
	err := c.bad("dnsName", "%q lies in no zone that is linked to VirtualNetwork/%s", e.DNSName, e.VNet)
	err.WithHint("%s", c.zoneHint(e))
}

// zonesOf lists the zones that an endpoint's name is in and its network linked to.
func (s *set) zonesOf(e *core.PrivateEndpoint) []*core.PrivateDNSZone {
	var out []*core.PrivateDNSZone
	for _, z := range all[*core.PrivateDNSZone](s) {
		if inZone(e.DNSName, z.Domain()) && slices.Contains(z.VNets, e.VNet) {
			out = append(out, z)
		}
	}
	return out
}

func (s *set) zoneHint(e *core.PrivateEndpoint) string {
	var linked []string
	for _, z := range all[*core.PrivateDNSZone](s) {
		if inZone(e.DNSName, z.Domain()) {
			return fmt.Sprintf("link the zone: add %s to vnets of %s", e.VNet, objectOf(z))
		}
		if slices.Contains(z.VNets, e.VNet) {
			linked = append(linked, z.Domain())
		}
	}
	if len(linked) > 0 {
		return "the zones linked to it are " + strings.Join(linked, ", ")
	}
	_, parent, _ := strings.Cut(e.DNSName, ".")
	if parent == "" {
		parent = e.DNSName
	}
	return fmt.Sprintf("declare a PrivateDNSZone %s with vnets: [%s]", parent, e.VNet)
}
