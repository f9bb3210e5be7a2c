package resolver

import (
	"slices"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
)

// negativeTTL is how long "not there" may be kept, in seconds: what is not there may be
// there in a moment, a private endpoint that is being made.
const negativeTTL = 2

// zoneSet is the zones at one moment; it does not change.
type zoneSet struct {
	zones map[string]*zone // by canonical name: lower case, with the final dot
}

type zone struct {
	name string
	// names holds every name that exists, those between a record and the zone included,
	// which have no records.
	names map[string]recordsByType
}

// recordsByType are the records of a name by type.
type recordsByType map[uint16][]dns.RR

func newZoneSet(zones []core.GoalZone) *zoneSet {
	s := &zoneSet{zones: map[string]*zone{}}
	for _, z := range zones {
		name := dns.CanonicalName(z.Name)
		if s.zones[name] == nil {
			s.zones[name] = &zone{name: name, names: map[string]recordsByType{name: nil}}
		}
		for _, r := range z.Records {
			s.zones[name].add(r)
		}
	}
	return s
}

// add takes a record in. A record outside the zone can never be asked for.
func (z *zone) add(r core.GoalRecord) {
	name, made := dns.CanonicalName(r.Name), records(r)
	if !dns.IsSubDomain(z.name, name) || len(made) == 0 {
		return
	}
	of := z.names[name]
	if of == nil {
		of = recordsByType{}
		z.names[name] = of
	}
	for _, rr := range made {
		kind := rr.Header().Rrtype
		if !slices.ContainsFunc(of[kind], func(o dns.RR) bool { return dns.IsDuplicate(o, rr) }) {
			of[kind] = append(of[kind], rr)
		}
	}
	for name != z.name {
		name = parent(name)
		if _, known := z.names[name]; !known {
			z.names[name] = nil
		}
	}
}

func parent(name string) string {
	next, end := dns.NextLabel(name, 0)
	if end {
		return "."
	}
	return name[next:]
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

// lookup gives the records of a name, and whether it exists. A name that does not is
// answered by the wildcard next to the closest of its parents that does (RFC 4592).
func (z *zone) lookup(name string) (recordsByType, bool) {
	if of, ok := z.names[name]; ok {
		return of, true
	}
	for up := parent(name); ; up = parent(up) {
		if _, ok := z.names[up]; ok {
			of, ok := z.names["*."+up]
			return of, ok
		}
		if up == z.name || up == "." {
			return nil, false
		}
	}
}

// answer gives the records of a type, or of any; if there are none, the alias that stands
// for the name.
func (of recordsByType) answer(kind uint16) (found []dns.RR, alias *dns.CNAME) {
	if kind == dns.TypeANY {
		for _, k := range sortedTypes(of) {
			found = append(found, of[k]...)
		}
		return found, nil
	}
	if found = of[kind]; len(found) == 0 && len(of[dns.TypeCNAME]) > 0 {
		alias, _ = of[dns.TypeCNAME][0].(*dns.CNAME)
	}
	return found, alias
}

func sortedTypes(of recordsByType) []uint16 {
	var out []uint16
	for k := range of {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
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
