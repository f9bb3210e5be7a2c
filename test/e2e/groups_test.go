package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestGroups uses everything that a rule may name, and an NSG of the members' own, from
// files to the query's error; and cuts a running query by an update with revoke.
func TestGroups(t *testing.T) {
	busy.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Up()
	c.rewrite("network.yaml", "source: [10.20.0.0/24], destination: [Any]", "source: [bi, Elsewhere], destination: [db]")
	c.rewrite("network.yaml", "subnet: data\n", "subnet: data\napplicationSecurityGroups: [db]\n")
	c.rewrite("gateway.yaml", "subnet: gateways\n", "subnet: gateways\nnetworkSecurityGroup: members\napplicationSecurityGroups: [bi]\n")
	port := c.PG.Port
	members := func(access string) string {
		return fmt.Sprintf(`kind: NetworkSecurityGroup
name: members
revoke: true
rules:
  - {name: db, priority: 100, direction: Outbound, access: %s, protocol: TCP, destination: [db, Elsewhere], destinationPorts: ["%d"]}
`, access, port)
	}
	c.rewrite("network.yaml", "kind: PrivateDNSZone", `kind: ApplicationSecurityGroup
name: bi
---
kind: ApplicationSecurityGroup
name: db
---
kind: ServiceTag
name: Elsewhere
prefixes: [203.0.113.0/24]
---
`+members("Allow")+"---\nkind: PrivateDNSZone")
	c.applyExample()
	if got := c.Must("query", "-s", source, "-o", "csv", "select 41 + 1 as answer"); !strings.Contains(got, "42") {
		t.Fatalf("the query answered %q", got)
	}
	to := fmt.Sprintf("orders.corp.internal:%d", port)
	verdict := c.Must("check", "-g", gateway, "--to", to)
	for _, text := range []string{
		"allowed by rule members/db (100) at the NIC of gateway corp-bi, outbound",
		"allowed by rule gateways/allow-postgres (100) at subnet gateways, outbound",
		"allowed by rule data/only-gateways (100) at subnet data, inbound", "probe: connected",
	} {
		if !strings.Contains(verdict, text) {
			t.Errorf("the check lacks %q:\n%s", text, verdict)
		}
	}
	if list := c.Must("get", "servicetags") + c.Must("get", "ApplicationSecurityGroup"); !strings.Contains(list, "Elsewhere") || !strings.Contains(list, "bi") {
		t.Errorf("the kinds list %s", list)
	}
	wantFailure(t, c.Sluice("delete", "applicationsecuritygroup", "bi"), 1, "bi")

	running := c.Command("query", "-s", source, "--timeout", "2m", "select pg_sleep(100.25)")
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- running.Wait() }()
	for end := time.Now().Add(30 * time.Second); c.PG.Value(t, "select count(*) from pg_stat_activity where query like '%sleep(100.25%' and state = 'active' and pid <> pg_backend_pid()") != "1"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the query does not run")
		}
	}
	began := time.Now()
	c.Apply(members("Deny"))
	select {
	case err := <-ended:
		t.Logf("the query ended %v after the change was applied", time.Since(began))
		if err == nil {
			t.Error("the query whose flow was cut succeeded")
		}
	case <-time.After(60 * time.Second):
		t.Error("the query went on, 60 s after its flow was denied")
		_ = running.Process.Kill()
		<-ended
	}
	wantFailure(t, c.Sluice("query", "-s", source, "select 1"), 1, "denied by rule members/db (100) at the NIC of gateway corp-bi, outbound")
}
