package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// exampleObjects are the example's resources in the order in which apply names them.
var exampleObjects = []string{
	"DataSource/orders", "Gateway/corp-bi", "NATGateway/egress", "NetworkSecurityGroup/data", "NetworkSecurityGroup/gateways",
	"PrivateDNSZone/corp.internal", "PrivateEndpoint/orders-db", "VirtualNetwork/corp",
}

// changes reads what apply printed: object to change.
func changes(out string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(out) {
		object, change, _ := strings.Cut(strings.TrimSpace(line), " ")
		m[object] = change
	}
	return m
}

// wantChanges checks that apply reported one change for each of the example's objects.
func wantChanges(t *testing.T, out, change string) {
	t.Helper()
	got := changes(out)
	for _, object := range exampleObjects {
		if got[object] != change {
			t.Errorf("%s: %q, want %q", object, got[object], change)
		}
	}
	if len(got) != len(exampleObjects) {
		t.Errorf("apply spoke of %d objects, want %d:\n%s", len(got), len(exampleObjects), out)
	}
}

// input runs a command with text on standard input.
func (c *corp) input(text string, args ...string) (string, error) {
	cmd := c.Command(args...)
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestExampleAppliesAsItStands(t *testing.T) {
	busy.take(t)
	c := prepareCorp(t, t, sharedPG(t))
	c.Up()

	env := []string{"ORDERS_PASSWORD=" + c.PG.Password}
	dry := c.SluiceEnv(env, "apply", "--dry-run", "-f", c.Example)
	if dry.Exit != 0 {
		t.Fatalf("dry run: %+v", dry)
	}
	wantChanges(t, dry.Out, "created (dry run)")
	if out := c.Must("get", "gateways", "-o", "json"); strings.Contains(out, gateway) {
		t.Fatalf("the dry run created a gateway:\n%s", out)
	}
	wantChanges(t, c.applyExample(), "created")
	wantChanges(t, c.applyExample(), "unchanged")

	if got := c.value("select 40 + 2 as answer"); got != "42" {
		t.Errorf("the query gave %q", got)
	}
	if r := c.Sluice("query", "-s", source, "select 'x' as a, 1 as b"); r.Exit != 0 || !strings.Contains(r.Err, "(1 row)") {
		t.Errorf("a table of one row: %+v", r)
	}
	var fromInput bytes.Buffer
	cmd := c.Command("query", "-s", source, "-o", "csv", "-")
	cmd.Stdin, cmd.Stdout = strings.NewReader("select 7 as n\n"), &fromInput
	if err := cmd.Run(); err != nil || fromInput.String() != "n\r\n7\r\n" {
		t.Errorf("SQL from standard input: %v, %q", err, fromInput.String())
	}
}

func TestWhatGetPrintsAppliesUnchanged(t *testing.T) {
	busy.take(t)
	c := sharedCorp(t)
	var doc strings.Builder
	for _, kind := range []string{"virtualnetworks", "NetworkSecurityGroup", "natgateways", "privatednszones", "PRIVATEENDPOINTS", "gateway"} {
		if doc.Len() > 0 {
			doc.WriteString("---\n")
		}
		doc.WriteString(c.Must("get", kind, "-o", "yaml"))
	}
	doc.WriteString("---\n" + c.Must("get", "datasource", source, "-o", "yaml"))
	if strings.Contains(doc.String(), password) {
		t.Errorf("the password is in what get printed:\n%s", doc.String())
	}
	out, err := c.input(doc.String(), "apply", "-f", "-")
	if err != nil {
		t.Fatalf("apply what get printed: %v\n%s\nof:\n%s", err, out, doc.String())
	}
	wantChanges(t, out, "unchanged")
	if got := c.value("select 1"); got != "1" {
		t.Errorf("the data source's password did not survive: %q", got)
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	before := c.Must("get", "networksecuritygroup", "data", "-o", "json")
	c.rewrite("network.yaml", "only-gateways", "gateways-alone")
	out := c.Must("apply", "--dry-run", "-f", filepath.Join(c.Example, "network.yaml"))
	if got := changes(out)["NetworkSecurityGroup/data"]; got != "updated (dry run)" {
		t.Errorf("the dry run says %q of the changed group:\n%s", got, out)
	}
	if after := c.Must("get", "networksecuritygroup", "data", "-o", "json"); after != before {
		t.Errorf("the dry run changed the group:\n%s\nto\n%s", before, after)
	}
	out = c.Must("apply", "-f", filepath.Join(c.Example, "network.yaml"))
	if got := changes(out)["NetworkSecurityGroup/data"]; got != "updated" {
		t.Errorf("apply says %q of the changed group:\n%s", got, out)
	}
	if after := c.Must("get", "networksecuritygroup", "data", "-o", "json"); !strings.Contains(after, "gateways-alone") {
		t.Errorf("apply did not change the group:\n%s", after)
	}
}

func TestTimelineNamesEveryPhase(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	r := c.Sluice("query", "-s", source, "--timeline", "select 1")
	if r.Exit != 0 {
		t.Fatalf("%+v", r)
	}
	for _, phase := range []string{"queued", "leased", "injected", "dialled back", "connected", "executed", "streamed"} {
		if !strings.Contains(r.Err, phase) {
			t.Errorf("the timeline of a query that woke its gateway lacks %q:\n%s", phase, r.Err)
		}
	}
	list := c.Must("queries")
	if !strings.Contains(list, "succeeded") || !strings.Contains(list, "select 1") {
		t.Errorf("the query log lacks the query:\n%s", list)
	}
}

// TestTheExampleStaysAsPublished: scripts elsewhere apply these files. Who changes them on purpose
// writes it into the changelog, and the new sums here.
func TestTheExampleStaysAsPublished(t *testing.T) {
	for name, want := range map[string]string{
		"gateway.yaml": "1969bad25104189533f79bb62afd211ea27e66f71c63d1f96aab069d354b4f8f",
		"network.yaml": "c850147471e04d780098e7f603432b1907068e1db23baf9a2c17165519970d31",
	} {
		text, err := os.ReadFile(filepath.Join(exampleDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(text)); got != want {
			t.Errorf("examples/corp/%s was changed: its sum is %s, want %s", name, got, want)
		}
	}
}
