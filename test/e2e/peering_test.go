package e2e

import (
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// peered declares a network with the peerings to the named ones.
func peered(name, space, subnet string, to ...string) string {
	var peerings []string
	for _, remote := range to {
		peerings = append(peerings, fmt.Sprintf("{name: to-%s, remote: %[1]s}", remote))
	}
	return fmt.Sprintf(`---
kind: VirtualNetwork
name: %s
addressSpace: [%s]
subnets: [%s]
peerings: [%s]
`, name, space, subnet, strings.Join(peerings, ", "))
}

func peeredEndpoint(name, vnet, address, target string) string {
	return fmt.Sprintf(`---
kind: PrivateEndpoint
name: %s
vnet: %s
subnet: data
address: %s
target: %q
`, name, vnet, address, target)
}

// TestThroughAPeering queries a server behind a peer's private endpoint, by its name: it
// takes both sides' peerings, and leads to the peer's peers never.
func TestThroughAPeering(t *testing.T) {
	busy.take(t)
	f := newFarOnTheHost(t)
	beyond := newStranger(t)
	s := stack.New(t)
	s.Up()
	corp := func(to ...string) string {
		return peered("corp", "10.20.0.0/16", "{name: gateways, prefix: 10.20.0.0/24, delegation: sluice/gateways}", to...)
	}
	hub := func(to ...string) string {
		return peered("hub", "10.30.0.0/16", "{name: data, prefix: 10.30.1.0/24}", to...)
	}
	s.Apply(corp("hub") + hub("lab") + peered("lab", "10.40.0.0/16", "{name: data, prefix: 10.40.1.0/24}", "hub") +
		peeredEndpoint("hub-db", "hub", "10.30.1.4", fmt.Sprintf("%s:%d", f.server, f.pg.Port)) + "dnsName: db.hub.internal\n" +
		peeredEndpoint("lab-db", "lab", "10.40.1.4", beyond.Addr().String()) + `---
kind: PrivateDNSZone
name: hub.internal
vnets: [corp, hub]
---
kind: Gateway
name: corp-bi
vnet: corp
subnet: gateways
members: {min: 0, max: 1}
autoPause: never
` + f.source("hub", "db.hub.internal") + f.source("hub-address", "10.30.1.4") +
		dataSource("lab", "10.40.1.4", beyond.Addr().(*net.TCPAddr).Port, "orders", "report", password))

	wantPeering(t, s, "hub Initiated")
	_, r := ask(s, "hub-address", "select 1")
	wantFailure(t, r, 1, "connect", "no route to 10.30.1.4", "hint: ")
	_, r = ask(s, "hub", "select 1")
	wantFailure(t, r, 1, "resolve", "db.hub.internal does not exist")

	s.Apply(hub("lab", "corp"))
	wantPeering(t, s, "hub Connected")
	wantAnswerAtOnce(t, s, "hub", "select current_database()", "orders")
	wantAnswerAtOnce(t, s, "hub-address", "select 41 + 1", "42")
	check := s.Must("check", "-g", gateway, "--to", fmt.Sprintf("db.hub.internal:%d", f.pg.Port))
	if !strings.Contains(check, "rules: allowed") || !strings.Contains(check, "route: Peering hub") || !strings.Contains(check, "probe: connected") {
		t.Errorf("the check says\n%s", check)
	}

	_, r = ask(s, "lab", "select 1")
	wantFailure(t, r, 1, "connect", "no route to 10.40.1.4", "hint: ")
	s.Apply(corp("hub", "lab")) // one side alone, while hub is connected to both
	_, r = ask(s, "lab", "select 1")
	wantFailure(t, r, 1, "connect", "no route to 10.40.1.4", "hint: ")
	if n := beyond.called.Load(); n != 0 {
		t.Errorf("the endpoint of a peer's peer was reached %d times", n)
	}

	s.Apply(hub("lab"))
	wantPeering(t, s, "hub Initiated")
	s.Must("gateway", "restart", gateway)
	_, r = ask(s, "hub-address", "select 1")
	wantFailure(t, r, 1, "connect", "no route to 10.30.1.4")
}

func wantPeering(t *testing.T, s *stack.Stack, want string) {
	t.Helper()
	if out := s.Must("get", "virtualnetworks"); !strings.Contains(out, want) {
		t.Errorf("the networks' table lacks %q:\n%s", want, out)
	}
}

// stranger is a server of the machine that counts who calls.
type stranger struct {
	net.Listener
	called atomic.Int64
}

func newStranger(t *testing.T) *stranger {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, done := &stranger{Listener: l}, make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.called.Add(1)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return s
}
