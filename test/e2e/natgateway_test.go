package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
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

// TestNATGatewayAnswersARPNearby: a machine on a network of the host's own takes a public
// address of that network for a neighbour, and has no other way to it.
func TestNATGatewayAnswersARPNearby(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	n := outsides.Add(1)
	host, server := twoAddresses(int(n))
	f := newFarNumber(t, n, server+"/29")
	public := netip.MustParseAddr(host).Prev() // of the /30 that is this test's, one that is neither end of the /29
	if public.As4()[3]%8 == 0 {
		public = netip.MustParseAddr(server).Next()
	}
	ip(t, "addr", "add", host+"/29", "dev", f.near)
	c.rewrite("network.yaml", "publicAddresses: [host]", "publicAddresses: ["+public.String()+"]")
	c.Must("apply", "-f", c.Example+"/network.yaml")
	c.Apply(f.source("near", server))
	wantAnswer(t, c.Stack, "near", "select host(inet_client_addr())", public.String())
	status := c.Must("host", "status", "--run-dir", c.Run)
	if !strings.Contains(status, "ARP answer") || !strings.Contains(status, f.near+" "+public.String()) {
		t.Errorf("the host's status has no ARP answer for %s:\n%s", public, status)
	}
	c.Must("gateway", "pause", gateway)
	c.Stop("up", syscall.SIGKILL)
	if out, err := c.Command("host", "cleanup", "--run-dir", c.Run).CombinedOutput(); err != nil {
		t.Fatalf("host cleanup: %v\n%s", err, out)
	}
	left, err := exec.Command("ip", "neigh", "show", "proxy", "dev", f.near).CombinedOutput()
	if err != nil || len(left) > 0 {
		t.Errorf("after the cleanup the host answers ARP for %s: %v", left, err)
	}
}

// TestNATGatewayIsSeenAndDeleted: what went through it is in its status and in the
// metrics; it and its network go together, by the files that declare them.
func TestNATGatewayIsSeenAndDeleted(t *testing.T) {
	waiting.take(t)
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
