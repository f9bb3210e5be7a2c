package resolver

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

func set(name string, kind core.DNSRecordType, values ...string) core.GoalRecord {
	return core.GoalRecord{Name: name, Type: kind, Values: values}
}

// richZones is two zones, one inside the other, with every type of record.
func richZones() []core.GoalZone {
	long := strings.Repeat("x", 300)
	return []core.GoalZone{
		{Name: "corp.internal", Records: []core.GoalRecord{
			{Name: "two.corp.internal", Type: core.DNSTypeA, TTL: core.Duration(5 * time.Minute), Values: []string{"10.1.0.4", "10.1.0.5"}},
			set("two.corp.internal", core.DNSTypeAAAA, "fd00::4"),
			set("corp.internal", core.DNSTypeTXT, `say "hi" \ there`), set("corp.internal", core.DNSTypeMX, "10 two.corp.internal"),
			set("long.corp.internal", core.DNSTypeTXT, long),
			set("_pg._tcp.corp.internal", core.DNSTypeSRV, "10 60 5432 two.corp.internal", "20 0 5433 far.eu.corp.internal"),
			set("4.corp.internal", core.DNSTypePTR, "two.corp.internal"),
			set("alias.corp.internal", core.DNSTypeCNAME, "middle.corp.internal"),
			set("middle.corp.internal", core.DNSTypeCNAME, "far.eu.corp.internal"),
			set("dangling.corp.internal", core.DNSTypeCNAME, "nobody.corp.internal"),
			set("round.corp.internal", core.DNSTypeCNAME, "about.corp.internal"),
			set("about.corp.internal", core.DNSTypeCNAME, "round.corp.internal"),
			set("out.corp.internal", core.DNSTypeCNAME, "www.example.org"),
			set("*.wild.corp.internal", core.DNSTypeA, "10.1.0.9"),
			set("a.wild.corp.internal", core.DNSTypeTXT, "not the wildcard's"),
			set("b.c.wild.corp.internal", core.DNSTypeA, "10.1.0.10"),
			set("x.eu.corp.internal", core.DNSTypeA, "10.66.66.66"), // hidden by the inner zone
			set("bad.corp.internal", core.DNSTypeA, "10.1.0.500"),
		}},
		{Name: "eu.corp.internal", Records: []core.GoalRecord{set("far.eu.corp.internal", core.DNSTypeA, "10.2.0.4")}},
	}
}

func TestRecordsOfEveryType(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Config: Config{Zones: richZones()}})
	const soa, inner = "corp.internal. 2 IN SOA corp.internal. hostmaster.corp.internal. 1 3600 600 86400 2",
		"eu.corp.internal. 2 IN SOA eu.corp.internal. hostmaster.eu.corp.internal. 1 3600 600 86400 2"
	const viaAlias = "alias.corp.internal. 30 IN CNAME middle.corp.internal.; middle.corp.internal. 30 IN CNAME far.eu.corp.internal."
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"two.corp.internal.", dns.TypeA, "NOERROR aa: two.corp.internal. 300 IN A 10.1.0.4; two.corp.internal. 300 IN A 10.1.0.5"},
		{"two.corp.internal.", dns.TypeAAAA, "NOERROR aa: two.corp.internal. 30 IN AAAA fd00::4"},
		{"two.corp.internal.", dns.TypeTXT, "NOERROR aa: " + soa},
		{"corp.internal.", dns.TypeTXT, `NOERROR aa: corp.internal. 30 IN TXT "say \"hi\" \\ there"`},
		{"corp.internal.", dns.TypeMX, "NOERROR aa: corp.internal. 30 IN MX 10 two.corp.internal."},
		{"long.corp.internal.", dns.TypeTXT, `NOERROR aa: long.corp.internal. 30 IN TXT "` + strings.Repeat("x", 255) + `" "` + strings.Repeat("x", 45) + `"`},
		{"_pg._tcp.corp.internal.", dns.TypeSRV, "NOERROR aa: _pg._tcp.corp.internal. 30 IN SRV 10 60 5432 two.corp.internal.; _pg._tcp.corp.internal. 30 IN SRV 20 0 5433 far.eu.corp.internal."},
		{"_tcp.corp.internal.", dns.TypeSRV, "NOERROR aa: " + soa}, // between names
		{"4.corp.internal.", dns.TypePTR, "NOERROR aa: 4.corp.internal. 30 IN PTR two.corp.internal."},
		{"alias.corp.internal.", dns.TypeA, "NOERROR aa: " + viaAlias + "; far.eu.corp.internal. 30 IN A 10.2.0.4"},
		{"alias.corp.internal.", dns.TypeAAAA, "NOERROR aa: " + viaAlias + "; " + inner},
		{"alias.corp.internal.", dns.TypeCNAME, "NOERROR aa: alias.corp.internal. 30 IN CNAME middle.corp.internal."},
		{"dangling.corp.internal.", dns.TypeA, "NXDOMAIN aa: dangling.corp.internal. 30 IN CNAME nobody.corp.internal.; " + soa},
		{"any.wild.corp.internal.", dns.TypeA, "NOERROR aa: any.wild.corp.internal. 30 IN A 10.1.0.9"},
		{"deep.any.wild.corp.internal.", dns.TypeA, "NOERROR aa: deep.any.wild.corp.internal. 30 IN A 10.1.0.9"},
		{"ANY.Wild.corp.internal.", dns.TypeAAAA, "NOERROR aa: " + soa},
		{"a.wild.corp.internal.", dns.TypeA, "NOERROR aa: " + soa},    // exists by itself
		{"x.c.wild.corp.internal.", dns.TypeA, "NXDOMAIN aa: " + soa}, // c.wild exists between names
		{"x.eu.corp.internal.", dns.TypeA, "NXDOMAIN aa: " + inner},   // the longest zone decides
		{"bad.corp.internal.", dns.TypeA, "NXDOMAIN aa: " + soa},      // no value that is one
		{"nobody.corp.internal.", dns.TypeA, "NXDOMAIN aa: " + soa},
	} {
		if got := summary(query(t, "tcp", s.tcp, question(c.name, c.kind))); got != c.want {
			t.Errorf("%s %s:\ngot  %s\nwant %s", c.name, dns.TypeToString[c.kind], got, c.want)
		}
	}
	got := query(t, "udp", s.udp, question("round.corp.internal.", dns.TypeA).SetEdns0(1232, false))
	if _, text := why(got); got.Rcode != dns.RcodeServerFailure || text != "round.corp.internal -> about.corp.internal: aliases go round in a circle: round.corp.internal again" {
		t.Errorf("a circle: %s, %q", summary(got), text)
	}
}

// TestWhyThereIsNoAnswer reads what a client is told.
func TestWhyThereIsNoAnswer(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, failing(dns.RcodeNameError))
	s := start(t, Options{Config: Config{Zones: richZones(), Servers: servers(u.address)}})
	alone := start(t, Options{Config: Config{Zones: richZones()}})
	for _, c := range []struct {
		at   *server
		name string
		code uint16
		want string
	}{
		{s, "nobody.corp.internal.", upstream.CodeZone, "private zone corp.internal has no name nobody.corp.internal"},
		{s, "4.corp.internal.", upstream.CodeZone, "private zone corp.internal has no A record for 4.corp.internal"},
		{s, "dangling.corp.internal.", upstream.CodeZone, "dangling.corp.internal -> nobody.corp.internal: private zone corp.internal has no name nobody.corp.internal"},
		{s, "nobody.example.org.", upstream.CodeServers, u.address + ": NXDOMAIN"},
		{s, "out.corp.internal.", upstream.CodeServers, "out.corp.internal -> www.example.org: " + u.address + ": NXDOMAIN"},
		{s, "two.corp.internal.", 0, ""},
		{alone, "www.example.org.", upstream.CodeServers, "www.example.org is in no private zone, and there is no server to ask"},
	} {
		if code, text := why(query(t, "udp", c.at.udp, question(c.name, dns.TypeA).SetEdns0(1232, false))); code != c.code || text != c.want {
			t.Errorf("%s: %d %q, want %d %q", c.name, code, text, c.code, c.want)
		}
	}
}

// TestAliasesCrossIntoZones: a public name stands for one in a private zone, as private
// endpoints of a cloud's services do; the public address is hidden.
func TestAliasesCrossIntoZones(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		for _, line := range []string{
			"db.cloud.example. 60 IN CNAME db.privatelink.cloud.example.", "db.privatelink.cloud.example. 60 IN A 203.0.113.66",
			"evil.example. 60 IN A 203.0.113.67",
		} {
			rr, _ := dns.NewRR(line)
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m)
	})
	zones := []core.GoalZone{{Name: "privatelink.cloud.example", Records: []core.GoalRecord{set("db.privatelink.cloud.example", core.DNSTypeA, "10.1.0.4")}}}
	s := start(t, Options{Config: Config{Zones: zones, Servers: servers(u.address)}})
	const want = "NOERROR: db.cloud.example. 60 IN CNAME db.privatelink.cloud.example.; db.privatelink.cloud.example. 30 IN A 10.1.0.4"
	for range 2 { // the second time from what is kept
		if got := summary(query(t, "udp", s.udp, question("db.cloud.example.", dns.TypeA))); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	s.Update(Config{Servers: servers(u.address)})
	const public = "NOERROR: db.cloud.example. 60 IN CNAME db.privatelink.cloud.example.; db.privatelink.cloud.example. 60 IN A 203.0.113.66"
	if got := summary(query(t, "udp", s.udp, question("db.cloud.example.", dns.TypeA))); got != public {
		t.Errorf("without the zone: %s", got)
	}
	if got := summary(query(t, "udp", s.udp, question("other.example.", dns.TypeA))); got != "NOERROR: " {
		t.Errorf("records of other names were believed: %s", got)
	}
}

// TestAliasesThatAServerLeavesToUs are asked for in turn, and end when there are too many.
func TestAliasesThatAServerLeavesToUs(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		var n int
		if _, err := fmt.Sscanf(name, "n%d.", &n); err == nil && n > 0 {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 60 IN CNAME n%d.example.", name, n-1))
			m.Answer = append(m.Answer, rr)
		} else {
			m.Answer = append(m.Answer, aRecord(name, "203.0.113.5"))
		}
		_ = w.WriteMsg(m)
	})
	s := start(t, Options{Config: Config{Servers: servers(u.address)}})
	got := query(t, "tcp", s.tcp, question("n3.example.", dns.TypeA))
	if len(got.Answer) != 4 || got.Answer[3].Header().Rrtype != dns.TypeA {
		t.Errorf("got %s", summary(got))
	}
	if got := query(t, "tcp", s.tcp, question("n99.example.", dns.TypeA)); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("an endless chain: %s", summary(got))
	}
}

func TestLookup(t *testing.T) {
	zones := richZones()
	got := map[string]string{}
	for _, name := range []string{"two.corp.internal", "TWO.corp.internal.", "alias.corp.internal", "q.wild.corp.internal", "round.corp.internal",
		"out.corp.internal", "nobody.corp.internal", "www.example.org", "x.eu.corp.internal"} {
		if a, ok := Lookup(zones, name); ok {
			got[name] = a.String()
		}
	}
	want := map[string]string{"two.corp.internal": "10.1.0.4", "TWO.corp.internal.": "10.1.0.4", "alias.corp.internal": "10.2.0.4", "q.wild.corp.internal": "10.1.0.9"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, zone := range map[string]string{"nobody.corp.internal": "corp.internal", "x.EU.corp.internal.": "eu.corp.internal", "www.example.org": ""} {
		if got := Decides(zones, name); got != zone {
			t.Errorf("%q decides about %s, want %q", got, name, zone)
		}
	}
	endpoint := []core.GoalZone{{Name: "z", Records: []core.GoalRecord{{Name: "a.z", Address: netip.MustParseAddr("10.0.0.9")}}}}
	if a, ok := Lookup(endpoint, "a.z"); !ok || a.String() != "10.0.0.9" {
		t.Errorf("an endpoint's name is %v, %v", a, ok)
	}
}
