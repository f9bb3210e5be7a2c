package resolver

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
)

// records makes the records of one entry of a zone, without their names. Values that are
// none of the type are left out: the service has refused them already.
func records(r core.GoalRecord) []dns.RR {
	ttl := r.TTL
	if ttl <= 0 {
		ttl = core.DefaultRecordTTL
	}
	header := dns.RR_Header{Class: dns.ClassINET, Ttl: uint32(time.Duration(ttl) / time.Second)}
	if r.Address.IsValid() {
		return []dns.RR{addressRecord(header, r.Address.Unmap())}
	}
	var out []dns.RR
	for _, v := range r.Values {
		if rr := record(header, r.Type, v); rr != nil {
			out = append(out, rr)
		}
	}
	return out
}

func addressRecord(h dns.RR_Header, a netip.Addr) dns.RR {
	if a.Is4() {
		h.Rrtype = dns.TypeA
		return &dns.A{Hdr: h, A: a.AsSlice()}
	}
	h.Rrtype = dns.TypeAAAA
	return &dns.AAAA{Hdr: h, AAAA: a.AsSlice()}
}

func record(h dns.RR_Header, kind core.DNSRecordType, value string) dns.RR {
	h.Rrtype = dns.StringToType[string(kind)]
	switch kind {
	case core.DNSTypeA, core.DNSTypeAAAA:
		a, err := netip.ParseAddr(value)
		if err != nil || a.Is4() != (kind == core.DNSTypeA) || a.Zone() != "" {
			return nil
		}
		if a.Is6() { // IPv4 within IPv6 stays what it is
			return &dns.AAAA{Hdr: h, AAAA: a.AsSlice()}
		}
		return addressRecord(h, a)
	case core.DNSTypeCNAME:
		return named(value, func(name string) dns.RR { return &dns.CNAME{Hdr: h, Target: name} })
	case core.DNSTypePTR:
		return named(value, func(name string) dns.RR { return &dns.PTR{Hdr: h, Ptr: name} })
	case core.DNSTypeMX:
		if n, name, ok := numbers(value, 1); ok {
			return named(name, func(name string) dns.RR { return &dns.MX{Hdr: h, Preference: n[0], Mx: name} })
		}
	case core.DNSTypeSRV:
		if n, name, ok := numbers(value, 3); ok {
			return named(name, func(name string) dns.RR {
				return &dns.SRV{Hdr: h, Priority: n[0], Weight: n[1], Port: n[2], Target: name}
			})
		}
	case core.DNSTypeTXT:
		return &dns.TXT{Hdr: h, Txt: chunks(value)}
	}
	return nil
}

// named makes a record that holds a name, or none if it is not one.
func named(name string, of func(string) dns.RR) dns.RR {
	full := dns.Fqdn(name)
	if _, ok := dns.IsDomainName(full); !ok || name == "" {
		return nil
	}
	return of(dns.CanonicalName(full))
}

// numbers takes "10 60 5432 name" apart.
func numbers(value string, n int) ([]uint16, string, bool) {
	fields := strings.Fields(value)
	if len(fields) != n+1 {
		return nil, "", false
	}
	out := make([]uint16, n)
	for i := range out {
		v, err := strconv.ParseUint(fields[i], 10, 16)
		if err != nil {
			return nil, "", false
		}
		out[i] = uint16(v)
	}
	return out, fields[n], true
}

// chunks cuts a text into the strings of a TXT record, 255 bytes each. The library reads
// a backslash and quotes as escapes: they are written as such.
func chunks(text string) []string {
	var out []string
	for {
		n := min(len(text), 255)
		out = append(out, escape(text[:n]))
		if text = text[n:]; text == "" {
			return out
		}
	}
}

func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s)
}

// at gives a record under a name, its life shortened by age seconds.
func at(rr dns.RR, name string, age uint32) dns.RR {
	out := dns.Copy(rr)
	h := out.Header()
	h.Name = name
	h.Ttl -= min(age, h.Ttl)
	return out
}
