package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// natStatus is what a test reads of a NAT gateway's status.
type natStatus struct {
	Status struct {
		State, Reason string
		Hosts         []struct {
			Connections struct{ Attempted, Established uint64 }
		}
	}
}

// TestNATGatewayIsSeenAndDeleted: what went through it is in its status and in the
// metrics; it and its network go together, by the files that declare them.
func TestNATGatewayIsSeenAndDeleted(t *testing.T) {
	t.Parallel()
	c := newCorp(t)
	o := newOutside(t, c.PG.Port, fmt.Sprintf("127.0.0.1:%d", c.PG.Port))
	c.Apply(dataSource("outside", o.server, c.PG.Port, "orders", "report", password))
	if r := c.Sluice("query", "-s", "outside", "-o", "csv", "select 1 as one"); r.Exit != 0 {
		t.Fatalf("through the NAT gateway: %+v", r)
	}
	var seen natStatus
	eventually(t, 90*time.Second, "the host told of the connection", func() bool {
		seen = natStatus{}
		if err := json.Unmarshal([]byte(c.Must("get", "natgateway", "egress", "-o", "json")), &seen); err != nil {
			t.Fatal(err)
		}
		return len(seen.Status.Hosts) == 1 && seen.Status.Hosts[0].Connections.Established > 0
	})
	if seen.Status.State != "Up" {
		t.Errorf("its state is %s: %s", seen.Status.State, seen.Status.Reason)
	}
	if table := c.Must("get", "natgateways"); !strings.Contains(table, "PORTS USED") || !strings.Contains(table, "Up") {
		t.Errorf("the table is\n%s", table)
	}

	wantFailure(t, c.Sluice("delete", "natgateway", "egress"), 1, "VirtualNetwork/corp", "subnets[0].natGateway")
	wantFailure(t, c.Sluice("delete", "virtualnetwork", "corp", "natgateway", "egress"), 1, "Gateway/corp-bi", "hint: ")
	wantFailure(t, c.Sluice("delete", "virtualnetwork"), 2, "pairs of KIND NAME")
	c.Must("delete", "datasource", "outside")
	gone := c.Must("delete", "-f", c.Example)
	for _, object := range []string{"VirtualNetwork/corp deleted", "NATGateway/egress deleted", "Gateway/corp-bi deleted", "DataSource/orders deleted"} {
		if !strings.Contains(gone, object) {
			t.Errorf("the deletion lacks %q:\n%s", object, gone)
		}
	}
	wantFailure(t, c.Sluice("delete", "-f", c.Example), 3, "does not exist")
	if again := c.Must("delete", "-f", c.Example, "--ignore-not-found"); again != "" {
		t.Errorf("deleting nothing says %q", again)
	}
}
