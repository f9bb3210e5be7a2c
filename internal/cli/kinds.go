package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// kind is a kind of object as the command line shows it.
type kind struct {
	name    string // "VirtualNetwork"
	plural  string // in the API's paths
	columns []column
}

// column is one column of a table: where its value stands in the object's JSON, or how
// it follows from the object.
type column struct {
	header string
	path   string // "status.state"
	value  func(object map[string]any) string
}

var kinds = []kind{
	{"VirtualNetwork", "virtualnetworks", []column{{"NAME", "name", nil}, {"ADDRESS SPACE", "addressSpace", nil}, {"SUBNETS", "", subnets}, {"LINKS", "", subnetLinks}, {"PEERINGS", "", peerings}}},
	{"NetworkSecurityGroup", "networksecuritygroups", []column{{"NAME", "name", nil}, {"RULES", "", count("rules")}, {"REVOKE", "revoke", nil}}},
	{"ApplicationSecurityGroup", "applicationsecuritygroups", []column{{"NAME", "name", nil}}},
	{"ServiceTag", "servicetags", []column{{"NAME", "name", nil}, {"PREFIXES", "", count("prefixes")}}},
	{"NATGateway", "natgateways", []column{{"NAME", "name", nil}, {"VNET", "vnet", nil}, {"PUBLIC ADDRESSES", "publicAddresses", nil}, {"IDLE TIMEOUT", "idleTimeout", nil}, {"STATE", "status.state", nil}, {"CONNECTIONS", "status.connections", nil}, {"PORTS USED", "status.portsUsed", nil}, {"REASON", "status.reason", nil}}},
	{"RouteTable", "routetables", []column{{"NAME", "name", nil}, {"ROUTES", "", routes}}},
	{"PrivateDNSZone", "privatednszones", []column{{"NAME", "name", nil}, {"ZONE", "zone", nil}, {"VNETS", "vnets", nil}, {"RECORDS", "", count("records")}}},
	{"PrivateEndpoint", "privateendpoints", []column{{"NAME", "name", nil}, {"VNET", "vnet", nil}, {"SUBNET", "subnet", nil}, {"ADDRESS", "address", nil}, {"TARGET", "target", nil}, {"DNS NAME", "dnsName", nil}}},
	{"Gateway", "gateways", []column{{"NAME", "name", nil}, {"VNET", "vnet", nil}, {"SUBNET", "subnet", nil}, {"STATE", "status.state", nil}, {"SINCE", "", when("status.since")}, {"MEMBERS", "", count("status.members")}, {"AUTO-PAUSE", "autoPause", nil}, {"REASON", "", reasons}}},
	{"DataSource", "datasources", []column{{"NAME", "name", nil}, {"TYPE", "type", nil}, {"GATEWAY", "gateway", nil}, {"HOST", "parameters.host", nil}, {"DATABASE", "parameters.database", nil}, {"STATE", "status.state", nil}, {"NEXT TRY", "", when("status.nextTry")}, {"REASON", "", firstLine("status.reason")}}},
	{"Member", "members", []column{{"ID", "id", nil}, {"GATEWAY", "gateway", nil}, {"STATE", "state", nil}, {"ADDRESS", "address", nil}, {"HOST", "host", nil}, {"IMAGE", "image", nil}, {"AGE", "", age("createdAt")}, {"REASON", "reason", nil}}},
	{"Host", "hosts", []column{{"NAME", "name", nil}, {"CONNECTED", "connected", nil}, {"GOAL", "goalVersion", nil}, {"SEEN", "seenVersion", nil}, {"LAST SEEN", "", age("lastSeen")}, {"MEMORY FREE", "", memoryFree}, {"IMAGE", "image", nil}, {"PROBLEMS", "problems", nil}}},
	{"Lease", "leases", []column{{"ADDRESS", "address", nil}, {"VNET", "vnet", nil}, {"SUBNET", "subnet", nil}, {"GATEWAY", "gateway", nil}, {"MEMBER", "member", nil}, {"HOST", "host", nil}, {"STATE", "state", nil}, {"AGE", "", age("acquiredAt")}, {"EXPIRES", "", when("expiresAt")}, {"REUSABLE", "", when("reusableAt")}, {"REASON", "reason", nil}}},
	{"Link", "links", []column{{"NAME", "name", nil}, {"OWNER", "owner", nil}, {"STATE", "state", nil}, {"ADDRESSES", "addresses", nil}, {"AGE", "", age("since")}, {"REASON", "reason", nil}}},
	{"Query", "queries", []column{{"ID", "id", nil}, {"STATE", "state", nil}, {"PLACE", "queuePosition", nil}, {"USER", "user", nil}, {"SOURCE", "source", nil}, {"CLASS", "class", nil}, {"MEMBER", "member", nil}, {"STARTED", "", when("startedAt")}, {"TIME", "", elapsed}, {"ROWS", "rows", nil}, {"SQL", "", statement}, {"ERROR", "", firstLine("error")}}},
	{"Audit", "audits", []column{{"ID", "id", nil}, {"TIME", "", when("at")}, {"WHO", "who", nil}, {"ACT", "act", nil}, {"OBJECT", "object", nil}, {"NOTE", "", firstLine("note")}, {"WHY", "", firstLine("why")}}},
}

// kindOf finds a kind by its singular or plural in any case.
func kindOf(word string) (kind, error) {
	w := strings.ToLower(word)
	for _, k := range kinds {
		if w == strings.ToLower(k.name) || w == k.plural {
			return k, nil
		}
	}
	return kind{}, errs.New(errs.Invalid, "%q is not a kind", word).WithHint("one of %s", strings.Join(plurals(), ", "))
}

func plurals() []string {
	out := make([]string, len(kinds))
	for i, k := range kinds {
		out[i] = k.plural
	}
	return out
}

// table prints objects of the kind; columns that are empty throughout are left out.
func (k kind) table(w io.Writer, items []json.RawMessage) error {
	headers := make([]string, len(k.columns))
	for i, c := range k.columns {
		headers[i] = c.header
	}
	rows := make([][]string, len(items))
	for i, item := range items {
		var object map[string]any
		if err := json.Unmarshal(item, &object); err != nil {
			return fmt.Errorf("the service's answer: %w", err)
		}
		for _, c := range k.columns {
			if c.value != nil {
				rows[i] = append(rows[i], c.value(object))
			} else {
				rows[i] = append(rows[i], text(lookup(object, c.path)))
			}
		}
	}
	return PrintTable(w, headers, rows)
}

// lookup finds "status.state" in an object.
func lookup(object map[string]any, path string) any {
	var at any = object
	for part := range strings.SplitSeq(path, ".") {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[part]
	}
	return at
}

func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case []any:
		parts := make([]string, len(v))
		for i, p := range v {
			parts[i] = text(p)
		}
		return strings.Join(parts, ",")
	case bool:
		if v {
			return "yes"
		}
		return "no"
	case float64:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprint(v)
}

func count(path string) func(map[string]any) string {
	return func(o map[string]any) string {
		list, _ := lookup(o, path).([]any)
		return fmt.Sprint(len(list))
	}
}

func subnets(o map[string]any) string {
	list, _ := o["subnets"].([]any)
	var out []string
	for _, s := range list {
		if m, ok := s.(map[string]any); ok {
			out = append(out, text(m["name"])+" "+text(m["prefix"]))
		}
	}
	return strings.Join(out, ", ")
}

// subnetLinks shows who holds which subnet.
func subnetLinks(o map[string]any) string {
	list, _ := lookup(o, "status.subnets").([]any)
	var out []string
	for _, s := range list {
		m, _ := s.(map[string]any)
		held, _ := m["links"].([]any)
		for _, l := range held {
			link, _ := l.(map[string]any)
			out = append(out, text(m["name"])+": "+text(link["owner"]))
		}
	}
	return strings.Join(out, ", ")
}

// reasons shows why a gateway stands as it does, and what is in its way.
func reasons(o map[string]any) string {
	reason, problem := text(lookup(o, "status.reason")), text(lookup(o, "status.problem"))
	if reason == "" || problem == "" {
		return reason + problem
	}
	return reason + "; " + problem
}

// memoryFree shows how much of a host's memory is available.
func memoryFree(o map[string]any) string {
	free, total := text(lookup(o, "load.availableMiB")), text(lookup(o, "load.memoryMiB"))
	if total == "" {
		return ""
	}
	return free + " of " + total + " MiB"
}

func timeAt(o map[string]any, path string) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, text(lookup(o, path)))
	return t
}

func age(path string) func(map[string]any) string {
	return func(o map[string]any) string {
		t := timeAt(o, path)
		if t.IsZero() {
			return ""
		}
		return time.Since(t).Round(time.Second).String()
	}
}

func when(path string) func(map[string]any) string {
	return func(o map[string]any) string {
		t := timeAt(o, path)
		if t.IsZero() {
			return ""
		}
		return t.Local().Format("2006-01-02 15:04:05")
	}
}

func elapsed(o map[string]any) string {
	from, to := timeAt(o, "startedAt"), timeAt(o, "endedAt")
	if to.IsZero() {
		return ""
	}
	return milliseconds(to.Sub(from))
}

// maxStatement bounds the SQL in a table, in characters: some statements have megabytes.
const maxStatement = 120

// statement shows how a query's SQL begins, or the hash that stands for it.
func statement(o map[string]any) string {
	if s := firstLine("sql")(o); s != "" {
		return cut(s, maxStatement)
	}
	return text(o["sqlHash"])
}

func firstLine(path string) func(map[string]any) string {
	return func(o map[string]any) string {
		s := strings.Join(strings.Fields(text(lookup(o, path))), " ")
		return s
	}
}
