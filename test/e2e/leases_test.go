package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLeasesOfAHostThatIsAway takes a host away from under a member: its lease expires and
// is kept, the subnet keeps its link, and both go by force alone, with an audit entry. The
// host comes back twice: once wiped, once with a member that nobody wants any more.
func TestLeasesOfAHostThatIsAway(t *testing.T) {
	waiting.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Service("--lease-time", "15s", "--quarantine", "1s")
	eventually(t, 60*time.Second, "the service answers", func() bool { return c.Sluice("get", "gateways").Exit == 0 })
	c.applyExample()
	c.Host()
	c.Ready()
	if got := c.value("select 1"); got != "1" {
		t.Fatalf("the first query: %q", got)
	}
	wantText(t, c.Must("get", "virtualnetworks", "corp", "-o", "yaml"), "delegation: InUse", "owner: Gateway/corp-bi", "1 address is held by its members")
	wantText(t, c.Must("get", "links"), "corp/gateways/corp-bi", "Gateway/corp-bi", "Active", "10.20.0.4")
	wantText(t, c.Must("get", "leases"), "10.20.0.4", "held", "host h1 has the member", gateway)

	first := c.onlyMember().ID
	c.Stop("host", syscall.SIGKILL)
	c.Must("host", "cleanup", "--run-dir", c.Run)
	c.Host()
	begun := time.Now()
	eventually(t, 60*time.Second, "a query works on another member", func() bool { return c.Sluice("query", "-s", source, "-o", "csv", "select 2").Exit == 0 })
	t.Logf("a wiped host served a query %v after its start", time.Since(begun).Round(time.Millisecond))
	eventually(t, 60*time.Second, "the member that was wiped is gone", func() bool {
		list := items[memberItem](c, "members")
		return len(list) == 1 && list[0].ID != first
	})
	second := c.onlyMember()

	c.Stop("host", syscall.SIGKILL)
	eventually(t, 60*time.Second, "the lease expires", func() bool { return strings.Contains(c.Must("get", "leases", second.Address), "expired") })
	wantText(t, c.Must("get", "leases"), "host h1 has confirmed nothing of it since", "stays leased")
	wantText(t, c.Must("get", "links"), "Stale")
	wantFailure(t, c.Sluice("delete", "lease", second.Address), 1, second.ID, gateway, "--force")
	c.rewrite("network.yaml", "    delegation: sluice/gateways\n", "")
	wantFailure(t, c.Sluice("apply", "-f", c.Example+"/network.yaml"), 1, "delegation of subnet gateways", "Gateway/corp-bi", "start host h1 again")
	c.rewrite("network.yaml", "  - name: gateways\n", "  - name: gateways\n    delegation: sluice/gateways\n")

	c.Must("delete", "link", "corp/gateways/corp-bi", "--force", "--reason", "rack 7 burnt down")
	wantText(t, c.Must("get", "audits"), "release", "Lease/corp/"+second.Address, second.ID, "rack 7 burnt down")
	c.Host()
	eventually(t, 60*time.Second, "a query works on a third member", func() bool { return c.Sluice("query", "-s", source, "-o", "csv", "select 3").Exit == 0 })
	eventually(t, 60*time.Second, "nothing but the third member is left", func() bool {
		return len(items[memberItem](c, "members")) == 1 && len(memberPIDs(c)) == 1 && c.onlyMember().ID != second.ID
	})
}

func wantText(t *testing.T, out string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("lacks %q:\n%s", text, out)
		}
	}
}
