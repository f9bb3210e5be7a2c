package e2e

import (
	"encoding/json"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/client"
)

// TestEffectiveRulesAndRoutes runs the commands and compares what they say with what the
// kernel holds in the network's namespace.
func TestEffectiveRulesAndRoutes(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	c.rewrite("network.yaml", "    natGateway: egress\n", "    natGateway: egress\n    routeTable: private\n")
	c.Apply("kind: RouteTable\nname: private\nroutes:\n  - {name: closed, prefix: 192.0.2.0/24, nextHop: None}\n")
	c.Must("apply", "-f", c.Example+"/network.yaml")
	c.Must("gateway", "wake", gateway)
	space := vnetSpace(t, c.Stack)

	t.Run("rules", func(t *testing.T) {
		kernel := kernelRules(t, space)
		for chain, args := range map[string][]string{
			"gateways": {"-g", gateway},
			"data":     {"--vnet", "corp", "--subnet", "data"},
		} {
			var out client.CheckResult
			if err := json.Unmarshal([]byte(c.Must(append([]string{"check", "--effective-rules", "-o", "json"}, args...)...)), &out); err != nil {
				t.Fatal(err)
			}
			for _, direction := range []string{"outbound", "inbound"} {
				var got []string
				for _, r := range out.Rules {
					// Nothing is a health probe here: the kernel has no such rule.
					if strings.EqualFold(string(r.Direction), direction) && !slices.Contains(r.Source, "LoadBalancer") {
						got = append(got, r.NSG+"/"+r.Name)
					}
				}
				if diff := cmp.Diff(kernel[chain+" "+direction], got); diff != "" {
					t.Errorf("%s, %s (-kernel +command):\n%s", chain, direction, diff)
				}
			}
		}
		table := c.Must("check", "--effective-rules", "-g", gateway)
		for _, want := range []string{"DIRECTION", "allow-postgres", "10.20.1.0/24 port ", "65500"} {
			if !strings.Contains(table, want) {
				t.Errorf("the table lacks %q:\n%s", want, table)
			}
		}
	})
	t.Run("routes", func(t *testing.T) {
		var out client.CheckResult
		if err := json.Unmarshal([]byte(c.Must("check", "--effective-routes", "-g", gateway, "-o", "json")), &out); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(out.Routes, func(r client.Route) bool {
			return r.Table == "private" && r.Name == "closed" && r.NextHop == "None"
		}) {
			t.Errorf("%+v", out.Routes)
		}
		table := c.Must("check", "--effective-routes", "--vnet", "corp", "--subnet", "data")
		if strings.Contains(table, "private") || !strings.Contains(table, "10.20.0.0/16") || !strings.Contains(table, "names no NAT gateway") {
			t.Errorf("the routes of the subnet data:\n%s", table)
		}
	})
	t.Run("next hop", func(t *testing.T) {
		for _, tc := range []struct {
			to, hop string
			says    []string
			kernel  string // of ip route get
		}{
			{"orders.corp.internal", "VnetLocal", []string{"private endpoint orders-db of VirtualNetwork/corp answers on TCP port", "10.20.1.4"}, `^local 10\.20\.1\.4 `},
			{"198.51.100.7", "Internet egress", []string{"system route 0.0.0.0/0"}, `dev n[0-9a-f]+ `},
			{"192.0.2.9", "None", []string{"route private/closed (192.0.2.0/24 → None)"}, `^RTNETLINK answers: Invalid argument|blackhole`},
		} {
			out := c.Must("check", "--next-hop", tc.to, "-g", gateway)
			for _, want := range append(tc.says, "next hop: "+tc.hop+" ") {
				if !strings.Contains(out, want) {
					t.Errorf("%s: the answer lacks %q:\n%s", tc.to, want, out)
				}
			}
			if tc.to == "orders.corp.internal" {
				tc.to = "10.20.1.4"
			}
			if got := kernelRoute(t, space, tc.to); !regexp.MustCompile(tc.kernel).MatchString(got) {
				t.Errorf("the kernel sends %s by %q, the command says %s", tc.to, got, tc.hop)
			}
		}
	})
	t.Run("endpoint", func(t *testing.T) {
		out := c.Must("check", "--dry", "-g", gateway, "--to", "orders.corp.internal:"+strconv.Itoa(c.PG.Port))
		if !strings.Contains(out, "private endpoint orders-db of VirtualNetwork/corp answers") {
			t.Errorf("the check does not say which private endpoint answers:\n%s", out)
		}
	})
	for _, args := range [][]string{
		{"check", "--effective-rules"}, {"check", "--effective-rules", "--vnet", "corp"}, {"check", "-g", gateway},
		{"check", "-g", gateway, "--effective-rules", "--effective-routes"}, {"check", "-g", gateway, "--effective-rules", "-o", "xml"},
	} {
		if r := c.Sluice(args...); r.Exit != 2 {
			t.Errorf("%v: exit status %d\n%s", args, r.Exit, r.Err)
		}
	}
	wantFailure(t, c.Sluice("check", "--effective-rules", "--vnet", "corp", "--subnet", "none"), 3, "no subnet")
	wantFailure(t, c.Sluice("check", "-g", gateway, "--next-hop", "nobody.corp.internal"), 3, "private zone")
}

// kernelRules lists the rules of each NSG's chains by "NSG direction", in their order, as
// nft prints them.
func kernelRules(t *testing.T, space string) map[string][]string {
	t.Helper()
	rules, chain := map[string][]string{}, ""
	named, ruled := regexp.MustCompile(`chain nsg_(\w+)_(outbound|inbound) \{`), regexp.MustCompile(`comment "([^ ]+) \(\d+\) (?:outbound|inbound)"`)
	for line := range strings.Lines(nft(t, space, "list", "ruleset")) {
		switch m := named.FindStringSubmatch(line); {
		case m != nil:
			chain = m[1] + " " + m[2]
		case strings.HasPrefix(line, "\tchain"):
			chain = ""
		case chain != "":
			if r := ruled.FindStringSubmatch(line); r != nil {
				rules[chain] = append(rules[chain], r[1])
			}
		}
	}
	return rules
}

// kernelRoute asks the network's namespace where a member's packet to an address goes.
func kernelRoute(t *testing.T, space, to string) string {
	t.Helper()
	out, err := exec.Command("ip", "-n", space, "-o", "link").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	member := regexp.MustCompile(`(m[0-9a-f]{12})@`).FindStringSubmatch(string(out))
	routes, _ := exec.Command("ip", "-n", space, "route", "show").CombinedOutput()
	if member == nil {
		t.Fatalf("the namespace has no member's interface:\n%s", out)
	}
	from := regexp.MustCompile(`(?m)^(10\.20\.0\.\d+) dev ` + member[1]).FindStringSubmatch(string(routes))
	if from == nil {
		t.Fatalf("no address leads to %s:\n%s", member[1], routes)
	}
	out, _ = exec.Command("ip", "-n", space, "route", "get", to, "from", from[1], "iif", member[1], "mark", "0x5c").CombinedOutput()
	return string(out)
}
