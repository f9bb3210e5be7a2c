package core

import (
	"net"
	"net/netip"
)

// VNetDNS says whom a virtual network's resolver asks for names outside its private zones.
type VNetDNS struct {
	// Servers are asked in order: an address, address:port, or "host" for the servers
	// that the host itself uses. Empty means "host". All but "host" are reached through
	// the virtual network.
	Servers []string `json:"servers,omitempty"`
	// Timeout is how long one server may take. Default 2s.
	Timeout Duration `json:"timeout,omitempty"`
}

// DNSServerHost stands, among the servers of a virtual network, for the host's own.
const DNSServerHost = "host"

// The times of private zones and resolvers that a resource leaves out.
const (
	DefaultRecordTTL  = Duration(30e9) // also that of private endpoints' names
	DefaultDNSTimeout = Duration(2e9)
)

// DNSServers gives servers as address:port, 53 where none is written; "host" stays.
func DNSServers(servers []string) []string {
	var out []string
	for _, s := range servers {
		if a, err := netip.ParseAddr(s); err == nil {
			s = net.JoinHostPort(a.String(), "53")
		}
		out = append(out, s)
	}
	return out
}

// DNSRecordType is the type of a record set.
type DNSRecordType string

// The types of record that a private zone may hold.
const (
	DNSTypeA     DNSRecordType = "A"     // an IPv4 address
	DNSTypeAAAA  DNSRecordType = "AAAA"  // an IPv6 address
	DNSTypeCNAME DNSRecordType = "CNAME" // the one other name that this one stands for
	DNSTypeMX    DNSRecordType = "MX"    // "preference name"
	DNSTypePTR   DNSRecordType = "PTR"   // a name
	DNSTypeSRV   DNSRecordType = "SRV"   // "priority weight port name"
	DNSTypeTXT   DNSRecordType = "TXT"   // text
)

// DNSRecordTypes lists every type.
func DNSRecordTypes() []DNSRecordType {
	return []DNSRecordType{DNSTypeA, DNSTypeAAAA, DNSTypeCNAME, DNSTypeMX, DNSTypePTR, DNSTypeSRV, DNSTypeTXT}
}

// DNSRecordSet is all records of one name and type. Name is relative to the zone, "@" for
// the zone's own name; its first label may be "*" (RFC 4592). Names in Values are whole
// ones, without a dot at the end.
type DNSRecordSet struct {
	Name   string        `json:"name"`
	Type   DNSRecordType `json:"type"`
	TTL    Duration      `json:"ttl,omitempty"` // default: that of the zone
	Values []string      `json:"values"`
}

// Domain is the DNS name of the zone.
func (z *PrivateDNSZone) Domain() string {
	if z.Zone != "" {
		return z.Zone
	}
	return z.Name
}

// FullName is the whole name of a record set in a zone.
func (r DNSRecordSet) FullName(zone string) string {
	if r.Name == "@" {
		return zone
	}
	return r.Name + "." + zone
}

// GoalDNS is VNetDNS with what a host needs to act on it. Servers are address:port or
// "host".
type GoalDNS struct {
	Servers []string `json:"servers,omitempty"`
	Timeout Duration `json:"timeout,omitempty"`
}

// GoalZone is a private DNS zone that is linked to the virtual network. Several of one
// name are one zone.
type GoalZone struct {
	Name    string       `json:"name"`
	Records []GoalRecord `json:"records,omitempty"`
}

// GoalRecord is what one name (fully qualified, no trailing dot) stands for: the Address of
// a private endpoint, or the values of a record set.
type GoalRecord struct {
	Name    string        `json:"name"`
	Address netip.Addr    `json:"address,omitzero"`
	Type    DNSRecordType `json:"type,omitempty"`
	TTL     Duration      `json:"ttl,omitempty"` // default DefaultRecordTTL
	Values  []string      `json:"values,omitempty"`
}
