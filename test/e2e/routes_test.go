package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestRouteTables: a route to None takes a way away, one to Internet makes an exception to
// it, and the query's error names the route.
func TestRouteTables(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	f := newFarOnTheHost(t)
	c.rewrite("network.yaml", "    natGateway: egress\n", "    natGateway: egress\n    routeTable: private\n")
	table := func(routes ...string) {
		t.Helper()
		c.Apply("kind: RouteTable\nname: private\nroutes:\n" + strings.Join(routes, ""))
	}
	const closed = "  - {name: no-way-out, prefix: 0.0.0.0/0, nextHop: None}\n"
	server := fmt.Sprintf("  - {name: partner, prefix: %s/32, nextHop: Internet}\n", f.server)
	table(closed)
	c.Must("apply", "-f", c.Example+"/network.yaml")
	c.Apply(f.source("partner", f.server))

	_, r := ask(c.Stack, "partner", "select 1")
	wantFailure(t, r, 1, "connect", "no route to "+f.server, "route private/no-way-out (0.0.0.0/0 → None)", "hint: ")
	r = c.Sluice("check", "-g", gateway, "--timeout", "2s", "--to", fmt.Sprintf("%s:%d", f.server, f.pg.Port))
	if r.Exit != 1 || !strings.Contains(r.Out, "private/no-way-out") || strings.Contains(r.Out, "don't agree") {
		t.Errorf("the check of a way that is closed: %+v", r)
	}

	table(closed, server)
	wantAnswerAtOnce(t, c.Stack, "partner", "select current_database()", "orders")
	check := c.Must("check", "-g", gateway, "--to", fmt.Sprintf("%s:%d", f.server, f.pg.Port))
	if !strings.Contains(check, "NAT gateway egress") || !strings.Contains(check, "route private/partner") || !strings.Contains(check, "probe: connected") {
		t.Errorf("the check of the exception says\n%s", check)
	}
	if got := c.value("select 1"); got != "1" {
		t.Errorf("the network's own endpoint: %q", got)
	}

	table(closed, server, "  - {name: no-data, prefix: 10.20.1.0/24, nextHop: None}\n")
	// The member's pooled connection leads there: it is cut, and nobody waits for it.
	begun := time.Now()
	wantFailure(t, c.query("select 1"), 1, "connect", "no route to 10.20.1.4", "route private/no-data (10.20.1.0/24 → None)")
	if took := time.Since(begun); took > 9*time.Second { // a connection attempt's time-out is 10 s
		t.Errorf("the query took %s to say so", took)
	}
	wantAnswerAtOnce(t, c.Stack, "partner", "select 41 + 1", "42")
}
