package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFilesThatAreWrong applies files with mistakes: each is named with file, line,
// field and reason, several at once, and nothing is applied.
func TestFilesThatAreWrong(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	before := c.Must("get", "virtualnetworks", "-o", "json") + c.Must("get", "networksecuritygroups", "-o", "json")
	for _, tc := range []struct {
		name, doc string
		texts     []string
	}{
		{"unknown field", "kind: VirtualNetwork\nname: other\naddressSpace: [10.30.0.0/16]\nsubnet: []\n", []string{":4", "subnet"}},
		{"unknown kind", "kind: VirtualNet\nname: other\n", []string{":1", "VirtualNet"}},
		{"no name", "kind: PrivateDNSZone\nvnets: [corp]\n", []string{"name"}},
		{"bad prefix", "kind: VirtualNetwork\nname: other\naddressSpace: [10.30.0.0/33]\n", []string{":3", "addressSpace", "10.30.0.0/33"}},
		{"overlapping subnets", `kind: VirtualNetwork
name: other
addressSpace: [10.30.0.0/16]
subnets:
  - {name: a, prefix: 10.30.0.0/24}
  - {name: b, prefix: 10.30.0.128/25}
`, []string{":6", "subnets[1].prefix", "overlap"}},
		{"outside the address space", "kind: VirtualNetwork\nname: other\naddressSpace: [10.30.0.0/16]\nsubnets: [{name: a, prefix: 10.31.0.0/24}]\n", []string{"subnets[0].prefix", "10.31.0.0/24"}},
		{"dangling reference", "kind: PrivateEndpoint\nname: other\nvnet: corp\nsubnet: nowhere\ntarget: 127.0.0.1:1\n", []string{":4", "subnet", "nowhere"}},
		{"not YAML", "kind: [VirtualNetwork\nname: x\n", []string{"wrong.yaml"}},
		{"a delegated subnet holds nothing else", "kind: PrivateEndpoint\nname: other\nvnet: corp\nsubnet: gateways\ntarget: 127.0.0.1:1\n", []string{"delegat"}},
		{"a secret that is not there", dataSource("other", "h", 1, "d", "u", "p")[4:] + "---\nkind: DataSource\nname: third\ngateway: corp-bi\ntype: postgres\nparameters: {host: h, database: d}\ncredentials: {kind: basic, username: u, password: {env: SLUICE_TEST_NOT_SET}}\n", []string{"SLUICE_TEST_NOT_SET"}},
		{"an unknown parameter", "kind: DataSource\nname: other\ngateway: corp-bi\ntype: postgres\nparameters: {host: h, database: d, hots: x}\ncredentials: {kind: basic, username: u, password: p}\n", []string{"hots"}},
		{"an unknown type", "kind: DataSource\nname: other\ngateway: corp-bi\ntype: postgresql\nparameters: {host: h}\ncredentials: {kind: anonymous}\n", []string{"postgresql"}},
		{"priorities", `kind: NetworkSecurityGroup
name: other
rules:
  - {name: a, priority: 99, direction: Inbound, access: Allow, protocol: TCP, source: [Any], destination: [Any]}
  - {name: b, priority: 200, direction: Inbound, access: Allow, protocol: TCP, source: [Any], destination: [Any]}
  - {name: c, priority: 200, direction: Inbound, access: Deny, protocol: TCP, source: [Any], destination: [Any]}
`, []string{"rules[0].priority", "99", "rules[2].priority", "200", ":4", ":6"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := c.on(t)
			file := filepath.Join(c.Dir, "wrong.yaml")
			if err := os.WriteFile(file, []byte(tc.doc), 0o600); err != nil {
				t.Fatal(err)
			}
			r := c.Sluice("apply", "-f", file)
			wantFailure(t, r, 2, append(tc.texts, "wrong.yaml")...)
		})
	}
	if after := c.Must("get", "virtualnetworks", "-o", "json") + c.Must("get", "networksecuritygroups", "-o", "json"); after != before {
		t.Errorf("files that were refused changed something:\n%s\nto\n%s", before, after)
	}
	if r := c.Sluice("get", "datasource", "other"); r.Exit != 3 {
		t.Errorf("one good document of a refused file was applied: %+v", r)
	}
	wantFailure(t, c.Sluice("apply", "-f", filepath.Join(c.Dir, "missing.yaml")), 2, "missing.yaml")
	wantFailure(t, c.Sluice("apply"), 2, "hint: ")
}

// TestWhatIsInUseStays deletes what others need, and then everything in order.
func TestWhatIsInUseStays(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	if got := c.value("select 1"); got != "1" { // a member runs
		t.Fatal(got)
	}
	members := memberPIDs(c)
	for _, tc := range []struct{ kind, name, user string }{
		{"virtualnetwork", "corp", "Gateway/corp-bi"},
		{"networksecuritygroup", "data", "VirtualNetwork/corp"},
		{"natgateway", "egress", "VirtualNetwork/corp"},
		{"privatednszone", "corp.internal", "PrivateEndpoint/orders-db"},
		{"gateway", gateway, "DataSource/orders"},
	} {
		wantFailure(t, c.Sluice("delete", tc.kind, tc.name), 1, tc.user)
	}
	if got := memberPIDs(c); len(got) != len(members) || got[0] != members[0] {
		t.Errorf("a refused deletion replaced the members %v by %v", members, got)
	}
	c.rewrite("network.yaml", "    delegation: sluice/gateways\n", "")
	wantFailure(t, c.Sluice("apply", "-f", filepath.Join(c.Example, "network.yaml")), 1, "delegation of subnet gateways can't be removed", "Gateway/corp-bi")
	if got := c.value("select 2"); got != "2" {
		t.Errorf("after the refusals: %q", got)
	}

	c.Must("delete", "datasource", source)
	begun := time.Now()
	c.Must("delete", "gateway", gateway)
	if pids := memberPIDs(c); len(pids) > 0 {
		t.Errorf("the gateway is deleted and its members run: %v", pids)
	}
	t.Logf("a gateway with a running member was deleted in %v", time.Since(begun).Round(time.Millisecond))
	if out := c.Must("get", "members", "-o", "json"); strings.Contains(out, gateway) {
		t.Errorf("members of the deleted gateway:\n%s", out)
	}
	// The NAT gateway and its network name each other: the subnet lets go first.
	c.rewrite("network.yaml", "    natGateway: egress\n", "")
	c.Must("apply", "-f", filepath.Join(c.Example, "network.yaml"))
	c.Must("delete", "privateendpoint", "orders-db") // which the file made again
	c.Must("delete", "privatednszone", "corp.internal")
	c.Must("delete", "natgateway", "egress")
	c.Must("delete", "virtualnetwork", "corp")
	for _, object := range [][2]string{{"networksecuritygroup", "data"}, {"networksecuritygroup", "gateways"}} {
		c.Must("delete", object[0], object[1])
	}
	eventually(t, 60*time.Second, "the host removed the network", func() bool { return len(kernelObjects(c)) == 0 })
}

// kernelObjects are the installation's namespaces and links, but for the namespaces in
// which members' tunnels end and sandboxes wait to become members: they last as long as
// the host.
func kernelObjects(c *corp) []string {
	var out []string
	space := "namespace: sluice-" + c.Instance()
	for _, line := range c.Leftovers() {
		if line != space+"-t" && !strings.HasPrefix(line, space+"-b-") && (strings.HasPrefix(line, "namespace: ") || strings.HasPrefix(line, "link: ")) {
			out = append(out, line)
		}
	}
	return out
}

func TestCommandLinesThatAreWrong(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	for _, tc := range []struct {
		args  []string
		exit  int
		texts []string
	}{
		{[]string{"get", "pods"}, 2, []string{`"pods" is not a kind`, "gateways"}},
		{[]string{"get", "gateway", "nothing"}, 3, []string{"Gateway/nothing"}},
		{[]string{"delete", "gateway", "nothing"}, 3, []string{"Gateway/nothing"}},
		{[]string{"delete", "gateway"}, 2, nil},
		{[]string{"get", "gateways", "-o", "xml"}, 2, []string{"xml"}},
		{[]string{"query", "select 1"}, 2, []string{"data source", "-s SOURCE"}},
		{[]string{"query", "-s", source, "-o", "xlsx", "select 1"}, 2, []string{"xlsx"}},
		{[]string{"query", "-s", source, "--class", "urgent", "select 1"}, 2, []string{"urgent"}},
		{[]string{"query", "-s", source, "--timeout", "soon", "select 1"}, 2, []string{"soon"}},
		{[]string{"queries", "q-nothing"}, 3, []string{"q-nothing"}},
		{[]string{"gateway", "wake", "nothing"}, 3, []string{"Gateway/nothing"}},
		{[]string{"gateway", "explode", gateway}, 2, []string{"explode"}},
		{[]string{"frobnicate"}, 2, []string{"frobnicate"}},
		{[]string{"get", "gateways", "--no-such-flag"}, 2, []string{"no-such-flag"}},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			c := c.on(t)
			wantFailure(t, c.Sluice(tc.args...), tc.exit, tc.texts...)
		})
	}
	r := c.SluiceEnv([]string{"SLUICE_SOCKET=" + c.Dir + "/nobody.sock"}, "get", "gateways")
	wantFailure(t, r, 1, "nobody.sock", "hint: ", "sluice up")
	r = c.SluiceEnv([]string{"SLUICE_SOCKET=", fmt.Sprintf("SLUICE_URL=http://127.0.0.1:%d", closedPort(t)), "SLUICE_TOKEN=x"}, "get", "gateways")
	wantFailure(t, r, 1, "127.0.0.1", "hint: ")
}
