package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
)

// TestCheck asks for the rules' verdict and for a probe, which must agree.
func TestCheck(t *testing.T) {
	waiting.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Up()
	// The gateways' own rules allow one more port, which the data subnet's then deny.
	port := c.PG.Port
	const open = 9999
	c.rewrite("network.yaml", fmt.Sprintf(`destination: [10.20.1.0/24], destinationPorts: ["%d"]`, port),
		fmt.Sprintf(`destination: [10.20.1.0/24], destinationPorts: ["%d", "%d"]`, port, open))
	c.applyExample()
	const host = "orders.corp.internal"
	for _, tc := range []struct {
		name  string
		args  []string
		exit  int
		out   []string
		probe bool
	}{
		{"allowed", []string{"--to", fmt.Sprintf("%s:%d", host, port)}, 0,
			[]string{"rules: allowed", "10.20.1.4", "allowed by rule gateways/allow-postgres (100) at subnet gateways, outbound",
				"allowed by rule data/only-gateways (100) at subnet data, inbound", "probe: connected"}, true},
		{"denied by the gateways' rule", []string{"--to", host + ":22"}, 1,
			[]string{"rules: denied", "denied by rule gateways/deny-rest-of-vnet (4000) at subnet gateways, outbound", "probe: "}, true},
		{"denied by the data's rule", []string{"--to", fmt.Sprintf("%s:%d", host, open)}, 1,
			[]string{"rules: denied", "allowed by rule gateways/allow-postgres (100)", "denied by rule data/deny-all (4096) at subnet data, inbound", "probe: "}, true},
		{"an address", []string{"--to", fmt.Sprintf("10.20.1.4:%d", port)}, 0, []string{"rules: allowed", "probe: connected"}, true},
		{"unknown name", []string{"--to", fmt.Sprintf("nothing.corp.internal:%d", port)}, 1, []string{"nothing.corp.internal", "private zone corp.internal has no IPv4 address for nothing.corp.internal"}, true},
		{"dry", []string{"--dry", "--to", fmt.Sprintf("%s:%d", host, port)}, 0, []string{"rules: allowed"}, false},
		{"dry and denied", []string{"--dry", "--to", host + ":22"}, 1, []string{"rules: denied", "gateways/deny-rest-of-vnet"}, false},
		{"from the subnet", []string{"--from", "subnet", "--to", fmt.Sprintf("%s:%d", host, port)}, 0, []string{"rules: allowed", "10.20.0."}, false},
		{"udp, dry", []string{"--dry", "--protocol", "udp", "--to", fmt.Sprintf("%s:%d", host, port)}, 1, []string{"rules: denied"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := c.on(t)
			timeout := "2s" // where packets are dropped, a probe takes all of it
			if tc.exit == 0 {
				timeout = "30s"
			}
			r := c.Sluice(append([]string{"check", "-g", gateway, "--timeout", timeout}, tc.args...)...)
			if r.Exit != tc.exit {
				t.Errorf("exit status %d, want %d\n%s%s", r.Exit, tc.exit, r.Out, r.Err)
			}
			for _, text := range tc.out {
				if !strings.Contains(r.Out, text) {
					t.Errorf("the answer lacks %q:\n%s%s", text, r.Out, r.Err)
				}
			}
			if strings.Contains(r.Out, "don't agree") {
				t.Errorf("rules and probe don't agree:\n%s", r.Out)
			}
			if got := strings.Contains(r.Out, "probe:"); got != tc.probe {
				t.Errorf("a probe was made: %v, want %v\n%s", got, tc.probe, r.Out)
			}
		})
	}
	wantFailure(t, c.Sluice("check", "-g", "nothing", "--to", "10.20.1.4:1"), 3, "Gateway/nothing")
	wantFailure(t, c.Sluice("check", "-g", gateway, "--to", "10.20.1.4"), 2, "HOST:PORT")
	wantFailure(t, c.Sluice("check", "-g", gateway, "--protocol", "udp", "--to", "10.20.1.4:1"), 2, "only TCP can be probed", "--dry")
}

// TestCheckAgreesEverywhere probes a grid of addresses and ports: wherever the rules
// allow and someone answers, or the rules deny, the probe says the same.
func TestCheckAgreesEverywhere(t *testing.T) {
	waiting.take(t)
	c := newCorp(t)
	cl := c.Client()
	for _, host := range []string{"10.20.1.4", "10.20.0.1", "10.20.0.2", "169.254.1.1", "127.0.0.1"} {
		for _, port := range []int{c.PG.Port, 53, 22} {
			var out client.CheckResult
			wantAllowed, timeout := host == "10.20.1.4" && port == c.PG.Port || host == "10.20.0.2" && port == 53, 500*time.Millisecond
			if wantAllowed {
				timeout = 30 * time.Second // a busy machine may take its time to answer
			}
			err := cl.Post(t.Context(), "/v1/check", map[string]any{"gateway": gateway, "host": host, "port": port, "timeoutNs": timeout}, &out)
			if err != nil {
				t.Errorf("%s:%d: %v", host, port, err)
				continue
			}
			if out.Agree == nil || !*out.Agree {
				doc, _ := json.Marshal(out)
				t.Errorf("%s:%d: rules and probe don't agree: %s", host, port, doc)
			}
			if out.Allowed != wantAllowed {
				t.Errorf("%s:%d: allowed %v, want %v: %v", host, port, out.Allowed, wantAllowed, out.Reasons)
			}
		}
	}
}

// TestARuleThatDeniesIsNamedByTheQuery changes the rules under a gateway that runs.
func TestARuleThatDeniesIsNamedByTheQuery(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	if got := c.value("select 1"); got != "1" {
		t.Fatalf("before the change: %q", got)
	}
	c.rewrite("network.yaml", "{name: only-gateways, priority: 100, direction: Inbound, access: Allow", "{name: only-gateways, priority: 100, direction: Inbound, access: Deny")
	c.Must("apply", "-f", c.Example+"/network.yaml")
	// The source's pooled connection is a flow that was allowed, and outlives the rule.
	c.Must("gateway", "restart", gateway)
	wantFailure(t, c.query("select 1"), 1, "connect", "denied by rule data/only-gateways (100) at subnet data, inbound")
	c.rewrite("network.yaml", "{name: only-gateways, priority: 100, direction: Inbound, access: Deny", "{name: only-gateways, priority: 100, direction: Inbound, access: Allow")
	c.Must("apply", "-f", c.Example+"/network.yaml")
	if got := c.value("select 1"); got != "1" {
		t.Errorf("after the change back: %q", got)
	}
}

func TestDataSourceTest(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	out := c.Must("datasource", "test", source)
	for _, step := range []string{"resolve", "connect", "sign-in"} {
		if !strings.Contains(out, step) {
			t.Errorf("the test lacks the step %q:\n%s", step, out)
		}
	}
	if !strings.Contains(out, "ok") || strings.Contains(out, "failed") {
		t.Errorf("the test of a good source:\n%s", out)
	}
	c.Apply(dataSource("bad", "orders.corp.internal", c.PG.Port, "orders", "report", "wrong"))
	r := c.Sluice("datasource", "test", "bad")
	wantFailure(t, r, 1, "28P01")
	if !strings.Contains(r.Out, "failed") || !strings.Contains(r.Out, "connect") {
		t.Errorf("the test of a bad source does not show its steps:\n%s", r.Out)
	}
	c.Apply(dataSource("denied", "orders.corp.internal", 9999, "orders", "report", password))
	wantFailure(t, c.Sluice("datasource", "test", "denied"), 1, "connect", "denied by rule gateways/deny-rest-of-vnet (4000)")
	wantFailure(t, c.Sluice("datasource", "test", "nothing"), 3, "DataSource/nothing")
}
