package resolver

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
)

// How long answers may be kept. What is not there may be there in a moment: a private
// endpoint that is being made.
const (
	recordTTL   = 30
	negativeTTL = 2
)

// zoneSet is the zones at one moment; it does not change.
type zoneSet struct {
	zones map[string]*zone // by canonical name: lower case, with the final dot
}

type zone struct {
	name string
	// names holds every name that exists, those between a record and the zone included,
	// with its addresses.
	names map[string][]netip.Addr
}

func newZoneSet(zones []core.GoalZone) *zoneSet {
	s := &zoneSet{zones: map[string]*zone{}}
	for _, z := range zones {
		name := dns.CanonicalName(z.Name)
		if s.zones[name] == nil {
			s.zones[name] = &zone{name: name, names: map[string][]netip.Addr{name: nil}}
		}
		for _, r := range z.Records {
			s.zones[name].add(r)
		}
	}
	return s
}

// add takes a record in. A record outside the zone can never be asked for.
func (z *zone) add(r core.GoalRecord) {
	name := dns.CanonicalName(r.Name)
	if !dns.IsSubDomain(z.name, name) || !r.Address.IsValid() {
		return
	}
	if a := r.Address.Unmap(); !slices.Contains(z.names[name], a) {
		z.names[name] = append(z.names[name], a)
	}
	for name != z.name {
		next, end := dns.NextLabel(name, 0)
		if end {
			return
		}
		name = name[next:]
		if _, known := z.names[name]; !known {
			z.names[name] = nil
		}
	}
}

// find gives the zone that a name is in, the longest that matches, or nil.
func (s *zoneSet) find(name string) *zone {
	for i, end := 0, false; !end; i, end = dns.NextLabel(name, i) {
		if z := s.zones[name[i:]]; z != nil {
			return z
		}
	}
	return s.zones["."]
}

// answer fills in the reply to a question about a name of the zone.
func (z *zone) answer(reply *dns.Msg, q dns.Question) {
	reply.Authoritative = true
	name := dns.CanonicalName(q.Name)
	addresses, exists := z.names[name]
	if !exists {
		reply.Rcode = dns.RcodeNameError
	}
	for _, a := range addresses {
		if rr := record(q, a); rr != nil {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	if name == z.name && (q.Qtype == dns.TypeSOA || q.Qtype == dns.TypeANY) {
		reply.Answer = append(reply.Answer, z.soa())
	}
	if len(reply.Answer) == 0 {
		reply.Ns = append(reply.Ns, z.soa())
	}
}

// record gives an address as an answer, or nil if the question is for another type.
func record(q dns.Question, a netip.Addr) dns.RR {
	header := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: recordTTL}
	switch {
	case a.Is4() && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY):
		header.Rrtype = dns.TypeA
		return &dns.A{Hdr: header, A: a.AsSlice()}
	case a.Is6() && (q.Qtype == dns.TypeAAAA || q.Qtype == dns.TypeANY):
		header.Rrtype = dns.TypeAAAA
		return &dns.AAAA{Hdr: header, AAAA: a.AsSlice()}
	}
	return nil
}

// soa tells how long "not there" may be kept. Nobody transfers the zone, so the rest of it
// is for show.
func (z *zone) soa() dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: z.name, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
		Ns:  z.name, Mbox: hostmaster(z.name), Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
	}
}

// hostmaster is the contact of a zone; a zone with too long a name is its own.
func hostmaster(zone string) string {
	if name := "hostmaster." + zone; zone != "." && len(name) < 250 {
		return name
	}
	return zone
}
