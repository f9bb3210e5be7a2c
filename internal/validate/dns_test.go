package validate_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/config"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/validate"
)

// with gives the zone record sets.
func with(sets ...core.DNSRecordSet) func(*world) {
	return func(w *world) { w.zone.Records = sets }
}

func recordSet(name string, kind core.DNSRecordType, values ...string) core.DNSRecordSet {
	return core.DNSRecordSet{Name: name, Type: kind, Values: values}
}

func TestRecordSets(t *testing.T) {
	const at0 = "PrivateDNSZone/corp.internal records[0]."
	long := strings.Repeat("a.", 120) + "aaaa" // 244: with the zone it is too long
	run(t, map[string]testCase{
		"every type": {with(
			recordSet("@", core.DNSTypeTXT, `v=1 "quoted"`), recordSet("@", core.DNSTypeMX, "10 mail.corp.internal"),
			recordSet("a", core.DNSTypeA, "10.1.0.4", "10.1.0.5"), recordSet("a", core.DNSTypeAAAA, "fd00::4"),
			recordSet("*", core.DNSTypeA, "10.1.0.9"), recordSet("*.deep.down", core.DNSTypeCNAME, "a.corp.internal"),
			recordSet("_pg._tcp", core.DNSTypeSRV, "10 60 5432 a.corp.internal"), recordSet("4", core.DNSTypePTR, "a.corp.internal"),
		), ""},
		"no name":          {with(recordSet("", core.DNSTypeA, "10.1.0.4")), at0 + `name: is missing: a name relative to corp.internal, or "@" for it`},
		"a bad name":       {with(recordSet("-a", core.DNSTypeA, "10.1.0.4")), at0 + `name: "-a" is not a DNS name: labels of up to 63 letters, digits and hyphens, with dots between`},
		"upper case":       {with(recordSet("Db", core.DNSTypeA, "10.1.0.4")), at0 + `name: "Db" must be in lower case`},
		"a star inside":    {with(recordSet("a.*", core.DNSTypeA, "10.1.0.4")), at0 + `name: "a.*" is not a DNS name: labels of up to 63 letters, digits and hyphens, with dots between`},
		"a whole name":     {with(recordSet("x.corp.internal", core.DNSTypeA, "10.1.0.4")), at0 + `name: "x.corp.internal" would be x.corp.internal.corp.internal: names are relative to the zone`},
		"too long":         {with(recordSet(long, core.DNSTypeA, "10.1.0.4")), at0 + "name: " + long + ".corp.internal is longer than 253 characters"},
		"no type":          {with(recordSet("a", "", "x")), at0 + "type: is missing: one of A, AAAA, CNAME, MX, PTR, SRV, TXT"},
		"another type":     {with(recordSet("a", "NS", "x")), at0 + `type: "NS" is none of A, AAAA, CNAME, MX, PTR, SRV, TXT`},
		"no value":         {with(recordSet("a", core.DNSTypeA)), at0 + "values: is missing: at least one value"},
		"IPv6 in A":        {with(recordSet("a", core.DNSTypeA, "10.1.0.4", "fd00::1")), at0 + `values[1]: "fd00::1" is not an IPv4 address such as 10.20.1.4`},
		"IPv4 in AAAA":     {with(recordSet("a", core.DNSTypeAAAA, "::ffff:10.1.0.4")), at0 + `values[0]: "::ffff:10.1.0.4" is not an IPv6 address such as fd00::4`},
		"a value twice":    {with(recordSet("a", core.DNSTypeA, "10.1.0.4", "10.1.0.4")), at0 + `values[1]: "10.1.0.4" stands there twice`},
		"a dot at the end": {with(recordSet("a", core.DNSTypeCNAME, "b.corp.internal.")), at0 + `values[0]: "b.corp.internal." ends with a dot: leave it out`},
		"two aliases":      {with(recordSet("a", core.DNSTypeCNAME, "b.x", "c.x")), at0 + "values: a CNAME has one value, not 2"},
		"its own alias":    {with(recordSet("a", core.DNSTypeCNAME, "a.corp.internal")), at0 + `values[0]: "a.corp.internal" stands for itself`},
		"the apex":         {with(recordSet("@", core.DNSTypeCNAME, "b.x")), at0 + "name: the zone's own name can't be a CNAME"},
		"half an SRV":      {with(recordSet("a", core.DNSTypeSRV, "10 60 a.b")), at0 + `values[0]: "10 60 a.b" is not "priority weight port" and a name, such as "10 60 5432 db.corp.internal"`},
		"an SRV port":      {with(recordSet("a", core.DNSTypeSRV, "10 60 65536 a.b")), at0 + `values[0]: "10 60 65536 a.b" holds "65536", which is not a number from 0 to 65535`},
		"a long text":      {with(recordSet("a", core.DNSTypeTXT, strings.Repeat("x", 1025))), at0 + `values[0]: "` + strings.Repeat("x", 1025) + `" is longer than 1024 bytes`},
		"a set twice": {with(recordSet("a", core.DNSTypeA, "10.1.0.4"), recordSet("a", core.DNSTypeA, "10.1.0.5")),
			`PrivateDNSZone/corp.internal records[1].name: "a" has a record set of type A already (records[0])`},
		"beside an alias": {with(recordSet("a", core.DNSTypeCNAME, "b.x"), recordSet("a", core.DNSTypeTXT, "y")),
			`PrivateDNSZone/corp.internal records[1].name: "a" is a CNAME (records[0]): a name with a CNAME has nothing else`},
		"an alias beside": {with(recordSet("a", core.DNSTypeTXT, "y"), recordSet("a", core.DNSTypeCNAME, "b.x")),
			`PrivateDNSZone/corp.internal records[1].name: "a" has other records (records[0]): a name with a CNAME has nothing else`},
		"an endpoint's name": {with(recordSet("db", core.DNSTypeA, "10.1.0.4")), at0 + "name: db.corp.internal is the dnsName of PrivateEndpoint/db already"},
		"beside an endpoint": {with(recordSet("db", core.DNSTypeTXT, "the database")), ""},
		"TTLs": {func(w *world) {
			w.zone.TTL = core.Duration(time.Hour)
			w.zone.Records = []core.DNSRecordSet{{Name: "a", Type: core.DNSTypeA, TTL: core.Duration(1500 * time.Millisecond), Values: []string{"10.1.0.4"}}}
		}, at0 + "ttl: 1.5s is not a whole number of seconds from 1s to 2147483647s"},
		"a TTL of never": {func(w *world) { w.zone.TTL = core.Never },
			"PrivateDNSZone/corp.internal ttl: never is not a whole number of seconds from 1s to 2147483647s"},
	})
}

func TestZonesOfOneName(t *testing.T) {
	second := func(vnet string) func(*world) {
		return func(w *world) {
			other := *w.vnet
			other.Name, other.Subnets = "lab", nil
			w.others = []core.Resource{&other, &core.PrivateDNSZone{Name: "corp-lab", Zone: "corp.internal", VNets: []string{vnet}}}
		}
	}
	run(t, map[string]testCase{
		"for different networks": {second("lab"), ""},
		"for one network":        {second("corp"), "PrivateDNSZone/corp-lab vnets[0]: PrivateDNSZone/corp.internal is the same zone, and corp is linked to it"},
		"a bad name":             {func(w *world) { w.zone.Zone = "corp.internal." }, "PrivateDNSZone/corp.internal zone: \"corp.internal.\" ends with a dot: leave it out\nPrivateEndpoint/db dnsName: \"db.corp.internal\" lies in no zone that is linked to VirtualNetwork/corp"},
	})
}

func TestDNSServers(t *testing.T) {
	vnet := func(servers ...string) func(*world) { return func(w *world) { w.vnet.DNS.Servers = servers } }
	source := func(servers ...string) func(*world) { return func(w *world) { w.ds.DNSServers = servers } }
	const ofVNet, ofSource = "VirtualNetwork/corp dns.servers", "DataSource/orders dnsServers"
	var many []string
	for i := range 9 {
		many = append(many, fmt.Sprintf("10.9.0.%d", i))
	}
	run(t, map[string]testCase{
		"of a network":       {vnet("10.9.0.53", "10.9.0.53:5353", "host"), ""},
		"of a source":        {source("10.9.0.53", "10.9.0.54:53"), ""},
		"a name":             {vnet("dns.corp.internal"), ofVNet + `[0]: "dns.corp.internal" is not an address, address:port or "host"`},
		"no port":            {vnet("10.9.0.53:0"), ofVNet + `[0]: "10.9.0.53:0" is not an address, address:port or "host"`},
		"the host's":         {source("host"), ofSource + `[0]: "host" is not an address or address:port`},
		"IPv6":               {source("fd00::53"), ofSource + `[0]: "fd00::53" is not IPv4: virtual networks are IPv4 only`},
		"loopback":           {vnet("127.0.0.53"), ofVNet + `[0]: "127.0.0.53" can't be reached from a virtual network: it is in loopback (127.0.0.0/8)`},
		"the tunnels":        {source("169.254.0.1"), ofSource + `[0]: "169.254.0.1" can't be reached from a virtual network: it is in the tunnels (169.254.0.0/16)`},
		"twice":              {vnet("10.9.0.53", "10.9.0.53:53"), ofVNet + `[1]: "10.9.0.53:53" stands there twice`},
		"the resolver":       {vnet("10.20.0.2"), ofVNet + `[0]: 10.20.0.2 is a reserved address of subnet "gateways": no server can be there`},
		"many of a network":  {vnet(many...), ofVNet + ": there are 9 servers, at most 8 are possible"},
		"many of a source":   {source(many[:5]...), ofSource + ": there are 5 servers, at most 4 are possible"},
		"too long a timeout": {func(w *world) { w.vnet.DNS.Timeout = core.Duration(time.Minute) }, "VirtualNetwork/corp dns.timeout: 1m0s is not from 100ms to 5s"},
	})
}

// TestPlacesOfNames shows where in a file a fault stands: what the strict reader finds and
// what only the whole set shows.
func TestPlacesOfNames(t *testing.T) {
	const file = `kind: VirtualNetwork
name: corp
addressSpace: [10.20.0.0/16]
dns:
  servers: [10.9.0.53, nowhere]
---
kind: PrivateDNSZone
name: corp.internal
vnets: [corp]
records:
  - {name: a, type: A, values: [10.1.0.4]}
  - name: b
    type: A
    ttl: 1m
    values:
      - 10.1.0.5
      - 10.1.0.500
`
	res, err := config.Read(config.Options{}, "net.yaml", strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	var set []core.Resource
	for _, d := range res.Documents {
		r, problems := config.DecodeJSON(d.Kind, d.JSON)
		if problems != nil {
			t.Fatal(problems)
		}
		set = append(set, r)
	}
	var got []string
	for _, p := range validate.Set(set) {
		got = append(got, config.Place(res.Documents, p).Error())
	}
	want := []string{
		`net.yaml:5: VirtualNetwork/corp dns.servers[1]: "nowhere" is not an address, address:port or "host"`,
		`net.yaml:17: PrivateDNSZone/corp.internal records[1].values[1]: "10.1.0.500" is not an IPv4 address such as 10.20.1.4`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	_, err = config.Read(config.Options{}, "net.yaml", strings.NewReader(strings.Replace(file, "ttl: 1m", "tll: 1m", 1)))
	if want := `net.yaml:14: PrivateDNSZone/corp.internal records[1].tll: unknown field "tll": did you mean "ttl"?`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
