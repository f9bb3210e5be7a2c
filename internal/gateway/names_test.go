package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/resolver"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
	"github.com/sluice-gateway/sluice/internal/testpg"
)

// vnetResolver runs a virtual network's resolver on two pairs of sockets, as a subnet has them.
func vnetResolver(t *testing.T, c resolver.Config) []string {
	t.Helper()
	r := resolver.New(resolver.Options{Config: c})
	var addresses []string
	for range 2 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp4", l.Addr().String())
		if err != nil {
			t.Skipf("the port is taken over UDP: %v", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Serve(ctx, pc, l) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		addresses = append(addresses, l.Addr().String())
	}
	return addresses
}

// TestWhoDecidedAboutAName: the error of a name tells the zone, or what each server did, and
// what to do.
func TestWhoDecidedAboutAName(t *testing.T) {
	t.Parallel()
	good := dnsServer(t, corpZone)
	closed := closedUDP(t)
	servers := func(addresses ...string) (out []upstream.Server) {
		for _, a := range addresses {
			out = append(out, upstream.Server{Address: a})
		}
		return out
	}
	zones := []core.GoalZone{{Name: "lab.internal", Records: []core.GoalRecord{
		{Name: "db.lab.internal", Type: core.DNSTypeCNAME, Values: []string{"orders.corp.internal"}},
		{Name: "text.lab.internal", Type: core.DNSTypeTXT, Values: []string{"no address"}},
		{Name: "gone.lab.internal", Type: core.DNSTypeCNAME, Values: []string{"nobody.corp.internal"}},
	}}}
	mixed := vnetResolver(t, resolver.Config{Zones: zones, Servers: servers(closed, good), Timeout: 20 * time.Second})
	down := vnetResolver(t, resolver.Config{Zones: zones, Servers: servers(closed)})
	asked := func(at []string) string { return " (asked the network's resolver " + at[0] + ")" }
	for _, tt := range []struct {
		servers          []string
		host, want, hint string
	}{
		{mixed, "db.lab.internal", "10.20.1.4", ""},
		{mixed, "nobody.lab.internal", "nobody.lab.internal does not exist: private zone lab.internal has no name nobody.lab.internal" + asked(mixed), "add a record to that PrivateDNSZone"},
		{mixed, "text.lab.internal", "text.lab.internal has no IPv4 address: private zone lab.internal has no A record for text.lab.internal" + asked(mixed), "add a record to that PrivateDNSZone"},
		{mixed, "gone.lab.internal", "gone.lab.internal does not exist: gone.lab.internal -> nobody.corp.internal: " + closed + ": ", "dns.servers decide"},
		{mixed, "nobody.corp.internal", ": NXDOMAIN" + asked(mixed), "dns.servers decide"},
		{mixed, "refused.corp.internal", good + ": REFUSED" + asked(mixed), "dns.servers run"},
		{down, "www.example.org", "www.example.org can't be resolved: " + closed + ": nothing listens there (connection refused)" + asked(down), "dns.servers run"},
	} {
		addrs, err := NewResolver(tt.servers).Resolve(t.Context(), tt.host)
		got, hint := strings.Join(addrs, " "), ""
		if err != nil {
			got, hint = err.Error(), errs.As(err).Hint
		}
		if !strings.Contains(got, tt.want) || !strings.Contains(hint, tt.hint) {
			t.Errorf("%s: got %q, want %q; hint %q, want %q", tt.host, got, tt.want, hint, tt.hint)
		}
	}
}

// TestASourcesOwnServers resolve its name, in a test and in a query, and its errors name
// them. The network's resolver is not asked.
func TestASourcesOwnServers(t *testing.T) {
	t.Parallel()
	pg := testpg.Shared(t)
	own := dnsServer(t, func(q dns.Question, m *dns.Msg) bool {
		if q.Name != "orders.example." {
			m.Rcode = dns.RcodeNameError
		} else if q.Qtype == dns.TypeA {
			rr, _ := dns.NewRR("orders.example. 10 IN A 127.0.0.1")
			m.Answer = append(m.Answer, rr)
		}
		return true
	})
	closed := closedUDP(t)
	p := servePostgres(t, pg, false)
	p.src.DNSServers = []string{closed, own}
	p.src.Parameters["host"] = "orders.example"
	if res := p.query(t, t.Context(), "select 1"); res.err != nil || res.rows != 1 {
		t.Errorf("a query: %d rows, %v", res.rows, res.err)
	}
	last := func() memberapi.TestStep {
		var resp memberapi.TestResponse
		if err := json.NewDecoder(post(t, t.Context(), p.url+memberapi.PathTest, memberapi.SourceRequest{Source: p.src}).Body).Decode(&resp); err != nil {
			t.Fatal(err)
		}
		if len(resp.Steps) == 0 {
			t.Fatal("no step")
		}
		return resp.Steps[len(resp.Steps)-1]
	}
	if step := last(); step.Error != "" {
		t.Errorf("a test: %+v", step)
	}
	p.src.Parameters["host"] = "nobody.example"
	want := "nobody.example does not exist: asked " + closed + ": nothing listens there (connection refused); " + own + ": NXDOMAIN"
	if step := last(); step.Name != errs.StepResolve || step.Error != want || !strings.Contains(step.Hint, "dnsServers") {
		t.Errorf("a test of an unknown name: %+v, want %q", step, want)
	}
	res := p.query(t, t.Context(), "select 1")
	var e *errs.Error
	if !errors.As(res.err, &e) || e.Step != errs.StepResolve || !strings.Contains(e.Message, closed+": not asked again, ") || !strings.HasSuffix(e.Message, own+": NXDOMAIN") {
		t.Errorf("a query of an unknown name: %v", res.err)
	}
}

// FuzzAddresses gives the member whatever parses as an answer.
func FuzzAddresses(f *testing.F) {
	m := new(dns.Msg).SetQuestion("a.x.", dns.TypeA)
	for _, line := range []string{"a.x. 1 IN CNAME b.x.", "b.x. 1 IN CNAME a.x.", "b.x. 1 IN A 10.0.0.1"} {
		rr, err := dns.NewRR(line)
		if err != nil {
			f.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		addrs, _ := addressesOf(m, "a.x.")
		for _, a := range addrs {
			if net.ParseIP(a) == nil {
				t.Errorf("%q is no address", a)
			}
		}
	})
}
