package validate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sluice-gateway/sluice/internal/core"
)

// The limits of names and servers.
const (
	maxRecordSets    = 10000
	maxRecordValues  = 100
	maxText          = 1024
	maxVNetServers   = 8
	maxSourceServers = 4
	maxTTL           = core.Duration((1<<31 - 1) * time.Second)
	minDNSTimeout    = core.Duration(100 * time.Millisecond)
	maxDNSTimeout    = core.Duration(5 * time.Second)
)

func (c *checker) zone(z *core.PrivateDNSZone) {
	if why := dnsNameProblem(z.Name); why != "" {
		c.bad("name", "%q %s", z.Name, why)
	}
	if z.Zone != "" {
		if why := dnsNameProblem(z.Zone); why != "" {
			c.bad("zone", "%q %s", z.Zone, why)
		}
	}
	for i, v := range z.VNets {
		if slices.Contains(z.VNets[:i], v) {
			c.bad(at("vnets", i), "%s is linked already", v)
		}
	}
	for _, other := range all[*core.PrivateDNSZone](c.set) {
		if other == z {
			break
		}
		c.sameZone(z, other)
	}
	c.ttl("ttl", z.TTL)
	c.recordSets(z)
}

// sameZone refuses two zones that a resolver could not tell apart.
func (c *checker) sameZone(z, other *core.PrivateDNSZone) {
	plain := func(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
	if plain(z.Domain()) != plain(other.Domain()) {
		return
	}
	for i, v := range z.VNets {
		if slices.Contains(other.VNets, v) {
			c.bad(at("vnets", i), "%s is the same zone, and %s is linked to it", objectOf(other), v)
		}
	}
}

func (c *checker) ttl(field string, ttl core.Duration) {
	switch {
	case ttl == 0:
	case ttl < core.Duration(time.Second), ttl > maxTTL, ttl%core.Duration(time.Second) != 0:
		c.bad(field, "%s is not a whole number of seconds from 1s to %ds", ttl, maxTTL/core.Duration(time.Second))
	}
}

// nameUse is what is known of one name of a zone.
type nameUse struct {
	sets  map[core.DNSRecordType]int // where each type stands
	first int
}

func (c *checker) recordSets(z *core.PrivateDNSZone) {
	if n := len(z.Records); n > maxRecordSets {
		c.bad("records", "there are %d record sets, at most %d are possible", n, maxRecordSets)
		return
	}
	endpoints := c.endpointNames(z)
	uses := map[string]nameUse{}
	for i, r := range z.Records {
		field := at("records", i)
		c.ttl(field+".ttl", r.TTL)
		oneOf(c, field+".type", r.Type, core.DNSRecordTypes()...)
		if !c.recordName(field+".name", z, r) {
			continue
		}
		c.recordValues(field+".values", z, r)
		c.recordUse(field, i, r, uses)
		if e := endpoints[r.FullName(z.Domain())]; e != nil && (r.Type == core.DNSTypeA || r.Type == core.DNSTypeCNAME) {
			c.bad(field+".name", "%s is the dnsName of %s already", e.DNSName, objectOf(e))
		}
	}
}

// endpointNames finds the private endpoints whose names the zone answers.
func (c *checker) endpointNames(z *core.PrivateDNSZone) map[string]*core.PrivateEndpoint {
	out := map[string]*core.PrivateEndpoint{}
	for _, e := range all[*core.PrivateEndpoint](c.set) {
		if e.DNSName != "" && slices.Contains(z.VNets, e.VNet) && inZone(e.DNSName, z.Domain()) {
			out[e.DNSName] = e
		}
	}
	return out
}

// recordUse refuses a second set of a type, and anything beside an alias.
func (c *checker) recordUse(field string, i int, r core.DNSRecordSet, uses map[string]nameUse) {
	use, known := uses[r.Name]
	if !known {
		use = nameUse{sets: map[core.DNSRecordType]int{}, first: i}
		uses[r.Name] = use
	}
	if first, twice := use.sets[r.Type]; twice {
		c.bad(field+".name", "%q has a record set of type %s already (%s)", r.Name, r.Type, at("records", first)).
			WithHint("write all values into one record set")
		return
	}
	cname, aliased := use.sets[core.DNSTypeCNAME]
	switch {
	case aliased:
		c.bad(field+".name", "%q is a CNAME (%s): a name with a CNAME has nothing else", r.Name, at("records", cname))
	case known && r.Type == core.DNSTypeCNAME:
		c.bad(field+".name", "%q has other records (%s): a name with a CNAME has nothing else", r.Name, at("records", use.first))
	}
	use.sets[r.Type] = i
}

// recordName reports whether a name is one that the zone can hold.
func (c *checker) recordName(field string, z *core.PrivateDNSZone, r core.DNSRecordSet) bool {
	name, zone := r.Name, z.Domain()
	if name == "@" {
		if r.Type == core.DNSTypeCNAME {
			c.bad(field, "the zone's own name can't be a CNAME")
			return false
		}
		return true
	}
	if name == "" {
		c.bad(field, "is missing: a name relative to %s, or \"@\" for it", zone)
		return false
	}
	plain := strings.TrimPrefix(name, "*.")
	if why := dnsNameProblem(plain); name != "*" && why != "" {
		c.bad(field, "%q %s", name, why)
		return false
	}
	if inZone(plain, zone) {
		short := strings.TrimSuffix(strings.TrimSuffix(name, zone), ".")
		if short == "" {
			short = "@"
		}
		c.bad(field, "%q would be %s: names are relative to the zone", name, r.FullName(zone)).WithHint("write %q", short)
		return false
	}
	if n := len(r.FullName(zone)); n > maxDNSName {
		c.bad(field, "%s is longer than %d characters", r.FullName(zone), maxDNSName)
		return false
	}
	return true
}

func (c *checker) recordValues(field string, z *core.PrivateDNSZone, r core.DNSRecordSet) {
	switch n := len(r.Values); {
	case n == 0:
		c.bad(field, "is missing: at least one value")
	case n > maxRecordValues:
		c.bad(field, "there are %d values, at most %d are possible", n, maxRecordValues)
		return
	case n > 1 && r.Type == core.DNSTypeCNAME:
		c.bad(field, "a CNAME has one value, not %d", n)
		return
	}
	seen := map[string]bool{}
	for i, v := range r.Values {
		if why := valueProblem(r.Type, v); why != "" {
			c.bad(at(field, i), "%q %s", v, why)
		} else if seen[v] {
			c.bad(at(field, i), "%q stands there twice", v)
		} else if r.Type == core.DNSTypeCNAME && v == r.FullName(z.Domain()) {
			c.bad(at(field, i), "%q stands for itself", v)
		}
		seen[v] = true
	}
}

// valueProblem says why a text is no value of a type, or "".
func valueProblem(kind core.DNSRecordType, v string) string {
	switch kind {
	case core.DNSTypeA:
		if a, err := netip.ParseAddr(v); err != nil || !a.Is4() {
			return "is not an IPv4 address such as 10.20.1.4"
		}
	case core.DNSTypeAAAA:
		if a, err := netip.ParseAddr(v); err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return "is not an IPv6 address such as fd00::4"
		}
	case core.DNSTypeCNAME, core.DNSTypePTR:
		return dnsNameProblem(v)
	case core.DNSTypeMX:
		return numbersAndName(v, "preference", "10 mail.corp.internal")
	case core.DNSTypeSRV:
		return numbersAndName(v, "priority weight port", "10 60 5432 db.corp.internal")
	case core.DNSTypeTXT:
		switch {
		case v == "":
			return "is empty"
		case len(v) > maxText:
			return fmt.Sprintf("is longer than %d bytes", maxText)
		case strings.ContainsFunc(v, unicode.IsControl):
			return "holds a control character"
		}
	}
	return ""
}

// numbersAndName checks values such as those of SRV records: numbers, then a name.
func numbersAndName(v, what, example string) string {
	fields, n := strings.Fields(v), len(strings.Fields(what))
	if len(fields) != n+1 {
		return fmt.Sprintf("is not %q and a name, such as %q", what, example)
	}
	for _, f := range fields[:n] {
		if _, err := strconv.ParseUint(f, 10, 16); err != nil {
			return fmt.Sprintf("holds %q, which is not a number from 0 to 65535", f)
		}
	}
	if why := dnsNameProblem(fields[n]); why != "" {
		return fmt.Sprintf("names %q, which %s", fields[n], why)
	}
	return ""
}

// vnetDNS judges the servers that a network's resolver asks.
func (c *checker) vnetDNS(v *core.VirtualNetwork) {
	c.dnsServers("dns.servers", v.DNS.Servers, maxVNetServers, true)
	if t := v.DNS.Timeout; t != 0 && (t < minDNSTimeout || t > maxDNSTimeout) {
		c.bad("dns.timeout", "%s is not from %s to %s", t, minDNSTimeout, maxDNSTimeout)
	}
	for i, s := range core.DNSServers(v.DNS.Servers) {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			continue
		}
		for _, sub := range v.Subnets {
			if Reserved(sub.Prefix, a.Addr()) {
				c.bad(at("dns.servers", i), "%s is a reserved address of subnet %q: no server can be there", a.Addr(), sub.Name).
					WithHint("the second and third address of a subnet are the resolver itself")
			}
		}
	}
}

func (c *checker) dnsServers(field string, servers []string, most int, host bool) {
	if n := len(servers); n > most {
		c.bad(field, "there are %d servers, at most %d are possible", n, most)
		return
	}
	full := core.DNSServers(servers)
	for i, s := range full {
		if why := serverProblem(s, host); why != "" {
			c.bad(at(field, i), "%q %s", servers[i], why)
		} else if slices.Contains(full[:i], s) {
			c.bad(at(field, i), "%q stands there twice", servers[i])
		}
	}
}

// serverProblem says why address:port can't be a DNS server, or "".
func serverProblem(s string, host bool) string {
	if host && s == core.DNSServerHost {
		return ""
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 {
		if host {
			return "is not an address, address:port or \"host\""
		}
		return "is not an address or address:port"
	}
	if !a.Addr().Is4() {
		return "is not IPv4: virtual networks are IPv4 only"
	}
	if what := unusable(netip.PrefixFrom(a.Addr(), 32)); what != "" {
		return "can't be reached from a virtual network: it is in " + what
	}
	return ""
}
