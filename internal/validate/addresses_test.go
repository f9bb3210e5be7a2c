package validate_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/validate"
)

func TestZonesAndEndpoints(t *testing.T) {
	address := func(s string) func(*world) { return func(w *world) { w.ep.Address = netip.MustParseAddr(s) } }
	target := func(s string) func(*world) { return func(w *world) { w.ep.Target = s } }
	dns := func(s string) func(*world) { return func(w *world) { w.ep.DNSName = s } }
	zone := func(name string, vnets ...string) func(*world) {
		return func(w *world) { w.others = []core.Resource{&core.PrivateDNSZone{Name: name, VNets: vnets}} }
	}
	endpoint := func(a string) func(*world) {
		return func(w *world) {
			w.others = []core.Resource{&core.PrivateEndpoint{Name: "e2", VNet: "corp", Subnet: "data", Address: netip.MustParseAddr(a), Target: "h:1"}}
		}
	}
	const label = " is not a DNS name: labels of up to 63 letters, digits and hyphens, with dots between"
	run(t, map[string]testCase{
		"zone of one label":  {zone("internal", "corp"), ""},
		"zone below another": {zone("a.corp.internal", "corp"), ""},
		"zone's case":        {zone("A.internal", "corp"), `PrivateDNSZone/A.internal name: "A.internal" must be in lower case`},
		"zone's dot":         {zone("a.internal.", "corp"), `PrivateDNSZone/a.internal. name: "a.internal." ends with a dot: leave it out`},
		"zone's label":       {zone("a..internal", "corp"), `PrivateDNSZone/a..internal name: "a..internal"` + label},
		"zone too long":      {zone(strings.Repeat("a.", 127)+"a", "corp"), "PrivateDNSZone/" + strings.Repeat("a.", 127) + `a name: "` + strings.Repeat("a.", 127) + `a" is longer than 253 characters`},
		"linked twice":       {zone("b.internal", "corp", "corp"), "PrivateDNSZone/b.internal vnets[1]: corp is linked already"},
		"same zone": {zone("corp.internal.", "corp"), `PrivateDNSZone/corp.internal. name: "corp.internal." ends with a dot: leave it out` + "\n" +
			"PrivateDNSZone/corp.internal. vnets[0]: PrivateDNSZone/corp.internal is the same zone, and corp is linked to it"},

		"address left out":    {func(w *world) { w.ep.Address = netip.Addr{} }, ""},
		"address outside":     {address("10.20.2.4"), `PrivateEndpoint/db address: 10.20.2.4 is not in the prefix 10.20.1.0/24 of subnet "data"`},
		"address .3":          {address("10.20.1.3"), "PrivateEndpoint/db address: 10.20.1.3 is reserved: the first four addresses of 10.20.1.0/24 and the last"},
		"address .0":          {address("10.20.1.0"), "PrivateEndpoint/db address: 10.20.1.0 is reserved: the first four addresses of 10.20.1.0/24 and the last"},
		"address last":        {address("10.20.1.255"), "PrivateEndpoint/db address: 10.20.1.255 is reserved: the first four addresses of 10.20.1.0/24 and the last"},
		"address before last": {address("10.20.1.254"), ""},
		"address IPv6":        {address("fd00::4"), "PrivateEndpoint/db address: fd00::4 is not IPv4: virtual networks are IPv4 only"},
		"another address":     {endpoint("10.20.1.5"), ""},
		"the same address":    {endpoint("10.20.1.4"), "PrivateEndpoint/e2 address: 10.20.1.4 is the address of PrivateEndpoint/db"},
		"in a delegated subnet": {func(w *world) { w.ep.Subnet, w.ep.Address = "gateways", netip.Addr{} },
			`PrivateEndpoint/db subnet: subnet "gateways" is delegated to sluice/gateways and holds nothing else`},

		"target by name":      {target("db.example.com:5432"), ""},
		"target IPv6":         {target("[::1]:5432"), ""},
		"target bare IPv6":    {target("::1:5432"), `PrivateEndpoint/db target: "::1:5432": the address "::1" needs brackets before a port: [::1]:5432`},
		"target without port": {target("127.0.0.1"), `PrivateEndpoint/db target: "127.0.0.1": is not host:port, such as 127.0.0.1:5432`},
		"target missing":      {target(""), "PrivateEndpoint/db target: is missing: host:port, as the host reaches the data service"},
		"port 0":              {target("a:0"), `PrivateEndpoint/db target: "a:0": "0" is not a port: a number from 1 to 65535`},
		"port 65536":          {target("a:65536"), `PrivateEndpoint/db target: "a:65536": "65536" is not a port: a number from 1 to 65535`},
		"port empty":          {target("a:"), `PrivateEndpoint/db target: "a:": "" is not a port: a number from 1 to 65535`},
		"address slip":        {target("10.0.0.256:1"), `PrivateEndpoint/db target: "10.0.0.256:1": "10.0.0.256" is not an address`},
		"bad host":            {target("a b:1"), `PrivateEndpoint/db target: "a b:1": the host "a b"` + label},

		"no name":           {dns(""), ""},
		"the zone itself":   {dns("corp.internal"), ""},
		"deep in the zone":  {dns("a.b.corp.internal"), ""},
		"suffix of letters": {dns("xcorp.internal"), `PrivateEndpoint/db dnsName: "xcorp.internal" lies in no zone that is linked to VirtualNetwork/corp`},
		"bad name":          {dns("-.corp.internal"), `PrivateEndpoint/db dnsName: "-.corp.internal"` + label},
	})
}

func TestAssignAddresses(t *testing.T) {
	build := func(order ...string) ([]core.Resource, map[string]*core.PrivateEndpoint) {
		w := valid()
		w.vnet.Subnets[1].Prefix = prefix("10.20.1.0/28") // .4 to .14
		set := w.set()
		byName := map[string]*core.PrivateEndpoint{}
		for _, n := range order {
			e := &core.PrivateEndpoint{Name: n, VNet: "corp", Subnet: "data", Target: "h:1"}
			byName[n] = e
			set = append(set, e)
		}
		return set, byName
	}
	for _, order := range [][]string{{"a", "b", "c"}, {"c", "a", "b"}} {
		set, by := build(order...)
		taken := func(vnet string, a netip.Addr) bool { return vnet == "corp" && a.String() == "10.20.1.6" }
		if problems := validate.AssignAddresses(set, taken); problems != nil {
			t.Fatal(lines(problems))
		}
		got := fmt.Sprint(by["a"].Address, by["b"].Address, by["c"].Address)
		if got != "10.20.1.5 10.20.1.7 10.20.1.8" { // .4 is db's, .6 is taken
			t.Errorf("%v: %s", order, got)
		}
		if problems := validate.Set(set); problems != nil {
			t.Error(lines(problems))
		}
	}

	names := strings.Split("abcdefghijk", "")
	set, by := build(names...)
	problems := validate.AssignAddresses(set, nil)
	if len(problems) != 1 || problems[0].Class != errs.Exhausted || lines(problems) != `PrivateEndpoint/k address: subnet "data" (10.20.1.0/28) has no free address` {
		t.Errorf("full: %s", lines(problems))
	}
	if by["j"].Address.String() != "10.20.1.14" || by["k"].Address.IsValid() {
		t.Errorf("j %s, k %s", by["j"].Address, by["k"].Address)
	}
}

func TestReserved(t *testing.T) {
	p := prefix("10.0.0.8/29")
	var usable []string
	for a := p.Addr(); p.Contains(a); a = a.Next() {
		if !validate.Reserved(p, a) {
			usable = append(usable, a.String())
		}
	}
	if got := strings.Join(usable, " "); got != "10.0.0.12 10.0.0.13 10.0.0.14" {
		t.Error(got)
	}
}
