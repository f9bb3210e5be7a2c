package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/config"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

const example = "../../examples/corp"

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

// kindList is how messages list the kinds.
func kindList() string {
	var out []string
	for _, k := range core.Kinds() {
		out = append(out, string(k))
	}
	return strings.Join(out, ", ")
}

func read(text string, pairs ...string) (config.Result, error) {
	return config.Read(config.Options{LookupEnv: env(pairs...)}, "f.yaml", strings.NewReader(text))
}

func TestExample(t *testing.T) {
	res, err := config.Load(config.Options{LookupEnv: env("ORDERS_PASSWORD", "s3cret")}, example)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range res.Documents {
		got = append(got, d.Object())
		if _, problems := config.DecodeJSON(d.Kind, d.JSON); problems != nil {
			t.Errorf("%s: %v", d, problems)
		}
	}
	want := []string{
		"Gateway/corp-bi", "DataSource/orders", "VirtualNetwork/corp", "NetworkSecurityGroup/gateways",
		"NetworkSecurityGroup/data", "NATGateway/egress", "PrivateDNSZone/corp.internal", "PrivateEndpoint/orders-db",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	r, _ := config.DecodeJSON(core.KindDataSource, res.Documents[1].JSON)
	ds := r.(*core.DataSource)
	if ds.Credentials.Password.Reveal() != "s3cret" || ds.Parameters["port"] != "5432" {
		t.Errorf("password %q, port %q", ds.Credentials.Password.Reveal(), ds.Parameters["port"])
	}
	if len(res.Warnings) != 0 {
		t.Errorf("warnings: %v", res.Warnings)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", res, res.Documents, res.Documents[1], res.Documents[1]); strings.Contains(s, "s3cret") || strings.Contains(s, "0x73, 0x33, 0x63") {
		t.Error("printing a document shows its password")
	}
}

// Each case is refused with exactly these lines.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"unknown kind": {
			"kind: Gatewy\nname: a\n",
			"f.yaml:1: Gatewy/a kind: unknown kind \"Gatewy\": did you mean Gateway? The kinds are " + kindList(),
		},
		"kind in another case": {
			"kind: gateway\nname: a\n",
			"f.yaml:1: gateway/a kind: unknown kind \"gateway\": did you mean Gateway? The kinds are " + kindList(),
		},
		"no kind": {
			"name: a\n",
			"f.yaml:1: a kind: the resource does not say its kind: the kinds are " + kindList(),
		},
		"no name":        {"\n\nkind: Gateway\nvnet: a\n", "f.yaml:3: Gateway name: a Gateway needs a name"},
		"empty name":     {"kind: Gateway\nname: \"\"\n", "f.yaml:2: Gateway name: a Gateway needs a name"},
		"unknown field":  {"kind: Gateway\nname: a\nsubnt: b\n", `f.yaml:3: Gateway/a subnt: unknown field "subnt": did you mean "subnet"?`},
		"field's case":   {"kind: Gateway\nname: a\nautopause: 3m\n", `f.yaml:3: Gateway/a autopause: unknown field "autopause": did you mean "autoPause"?`},
		"far from any":   {"kind: PrivateDNSZone\nname: a\nqqqqqq: b\n", `f.yaml:3: PrivateDNSZone/a qqqqqq: unknown field "qqqqqq": the fields here are name, records, ttl, vnets, zone`},
		"status deeper":  {"kind: Gateway\nname: a\nmembers: {status: 1}\n", `f.yaml:3: Gateway/a members.status: unknown field "status": the fields here are max, min`},
		"key twice":      {"kind: Gateway\nname: a\nvnet: x\nvnet: y\n", `f.yaml:4: Gateway/a vnet: the key "vnet" stands here twice, first on line 3`},
		"deep key twice": {"kind: Gateway\nname: a\nmembers:\n  min: 1\n  min: 1\n", `f.yaml:5: Gateway/a members.min: the key "min" stands here twice, first on line 4`},
		"list for text":  {"kind: Gateway\nname: a\nvnet: [b]\n", "f.yaml:3: Gateway/a vnet: must be text, not a list"},
		"text for list":  {"kind: PrivateDNSZone\nname: a\nvnets: b\n", "f.yaml:3: PrivateDNSZone/a vnets: must be a list, not text"},
		"text for map":   {"kind: Gateway\nname: a\nmembers: 3\n", "f.yaml:3: Gateway/a members: must be a mapping of fields, not a number"},
		"bool for text":  {"kind: Gateway\nname: a\nvnet: true\n", "f.yaml:3: Gateway/a vnet: must be text; put true in quotes if it is meant"},
		"text for bool":  {"kind: DataSource\nname: a\nreadOnly: no\n", `f.yaml:3: DataSource/a readOnly: must be true or false, not "no"`},
		"text for number": {
			"kind: Gateway\nname: a\nmembers: {max: two}\n",
			`f.yaml:3: Gateway/a members.max: must be a number, not "two"`,
		},
		"fraction":   {"kind: Gateway\nname: a\nmembers: {max: 1.5}\n", "f.yaml:3: Gateway/a members.max: must be a whole number within 64 bits, not 1.5"},
		"infinity":   {"kind: Gateway\nname: a\nsize: {cpus: .inf}\n", "f.yaml:3: Gateway/a size.cpus: .inf is not a number that has a use here"},
		"duration":   {"kind: Gateway\nname: a\nautoPause: 30\n", `f.yaml:3: Gateway/a autoPause: "30" is not a duration such as "30s", "4m" or "1h30m"`},
		"negative":   {"kind: Gateway\nname: a\nautoPause: -3m\n", `f.yaml:3: Gateway/a autoPause: the duration "-3m" is negative`},
		"prefix":     {"kind: VirtualNetwork\nname: a\naddressSpace: [10.0.0.0/8, 10.0.0.0/33]\n", `f.yaml:3: VirtualNetwork/a addressSpace[1]: "10.0.0.0/33" is not a prefix such as 10.20.0.0/16`},
		"address":    {"kind: PrivateEndpoint\nname: a\naddress: 10.0.0.256\n", `f.yaml:3: PrivateEndpoint/a address: "10.0.0.256" is not an address such as 10.20.1.4`},
		"empty item": {"kind: PrivateDNSZone\nname: a\nvnets:\n  - b\n  -\n", "f.yaml:5: PrivateDNSZone/a vnets[1]: is empty"},
		"merge":      {"kind: Gateway\nname: a\n<<: {vnet: b}\n", "f.yaml:3: Gateway/a: a key must be a plain word; merging (<<) is not supported"},
		"tag":        {"kind: Gateway\nname: a\nvnet: !x b\n", "f.yaml:3: Gateway/a vnet: the tag !x is not supported"},
		"not a map":  {"- kind: Gateway\n", "f.yaml:1: a resource is a mapping that begins with kind: and name:, not a list"},
		"nothing":    {"# only a comment\n", "f.yaml: no resource found"},
		"declared twice": {
			"kind: PrivateDNSZone\nname: a\n---\nkind: PrivateDNSZone\nname: a\n",
			"f.yaml:5: PrivateDNSZone/a name: PrivateDNSZone/a is declared twice, first at f.yaml:1",
		},
		"unset variable": {
			"kind: DataSource\nname: a\ncredentials:\n  password:\n    env: NOPE\n",
			"f.yaml:5: DataSource/a credentials.password.env: the environment variable NOPE is not set",
		},
		"password from nowhere": {
			"kind: DataSource\nname: a\ncredentials: {password: {vault: x}}\n",
			"f.yaml:3: DataSource/a credentials.password: must be text, {env: NAME} or {file: PATH}",
		},
		"all at once": {
			"kind: Gateway\nvnt: a\nautoPause: x\n---\nkind: VirtualNetwork\nname: v\nsubnets:\n  - name: s\n    prefix: 1.2.3\n    nsq: n\n",
			"f.yaml:1: Gateway name: a Gateway needs a name\n" +
				`f.yaml:2: Gateway vnt: unknown field "vnt": did you mean "vnet"?` + "\n" +
				`f.yaml:3: Gateway autoPause: "x" is not a duration such as "30s", "4m" or "1h30m"` + "\n" +
				`f.yaml:9: VirtualNetwork/v subnets[0].prefix: "1.2.3" is not a prefix such as 10.20.0.0/16` + "\n" +
				`f.yaml:10: VirtualNetwork/v subnets[0].nsq: unknown field "nsq": did you mean "nsg"?`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := read(c.in)
			if err == nil {
				t.Fatalf("accepted: %v", res.Documents)
			}
			if diff := cmp.Diff(c.want, err.Error()); diff != "" {
				t.Error(diff)
			}
			if res.Documents != nil {
				t.Error("documents came with the errors")
			}
			if got := errs.ClassOf(err); got != errs.Invalid {
				t.Errorf("class %s", got)
			}
		})
	}
}

func TestSyntaxError(t *testing.T) {
	for in, line := range map[string]int{
		"kind: Gateway\nname: a\n---\nkind: Gateway\nname: [b\n": 5,
		"kind: Gateway\nname: a: b\n":                            2,
		"kind: Gateway\nname: @a\n":                              2,
		"kind: [Gateway\n":                                       2,
		"\tkind: Gateway\n":                                      1,
	} {
		_, err := read(in)
		var all config.Errors
		if !errors.As(err, &all) || len(all) != 1 {
			t.Errorf("%q: %v", in, err)
		} else if all[0].Line != line || !strings.Contains(all[0].Reason, "not valid YAML") {
			t.Errorf("%q: %v, want line %d", in, err, line)
		}
	}
}

func TestAccepted(t *testing.T) {
	for name, c := range map[string]struct {
		in, want string
	}{
		"numbers where text belongs": {
			"kind: NetworkSecurityGroup\nname: 12\nrules: [{destinationPorts: [5432, 0x10]}]\n",
			`{"name":"12","rules":[{"destinationPorts":["5432","0x10"]}]}`,
		},
		"numbers in YAML's forms": {
			"kind: Gateway\nname: a\nmembers: {min: 0x1, max: 0o3}\nsize: {cpus: 1e0}\n",
			`{"members":{"max":3,"min":1},"name":"a","size":{"cpus":1}}`,
		},
		"booleans as parameters": {"kind: DataSource\nname: a\nparameters: {x: true, y: ~}\n", `{"name":"a","parameters":{"x":"true"}}`},
		"status is dropped":      {"kind: Gateway\nname: a\nstatus:\n  anything: [1]\n", `{"name":"a"}`},
		"empty means absent":     {"kind: Gateway\nname: a\nvnet:\nmembers:\n", `{"name":"a"}`},
		"an alias":               {"kind: PrivateDNSZone\nname: &n a\nvnets: [*n]\n", `{"name":"a","vnets":["a"]}`},
		"JSON is YAML":           {`{"kind":"Gateway","name":"a<b>&"}`, `{"name":"a<b>&"}`},
		"never":                  {"kind: Gateway\nname: a\nautoPause: never\n", `{"autoPause":"never","name":"a"}`},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := read(c.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(res.Documents[0].JSON)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPasswords(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "pw"), "from file\n")
	write(t, filepath.Join(dir, "empty"), "\n")
	load := func(password string) (config.Result, error) {
		f := filepath.Join(dir, "s.yaml")
		write(t, f, "kind: DataSource\nname: a\ncredentials:\n  password: "+password+"\n")
		return config.Load(config.Options{LookupEnv: env("PW", "from env", "EMPTY", "")}, f)
	}
	for in, want := range map[string]string{
		"{env: PW}":              "from env",
		"{file: pw}":             "from file",
		"in clear":               "in clear",
		"0123":                   "0123",
		"{file: " + dir + "/pw}": "from file",
	} {
		res, err := load(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		r, _ := config.DecodeJSON(core.KindDataSource, res.Documents[0].JSON)
		if got := r.(*core.DataSource).Credentials.Password.Reveal(); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
		warned := len(res.Warnings) == 1 && res.Warnings[0].Line == 4 && res.Warnings[0].Field == "credentials.password"
		if inClear := in[0] != '{'; warned != inClear {
			t.Errorf("%s: warnings %v", in, res.Warnings)
		}
	}
	for in, want := range map[string]string{
		"{env: NOPE}":        "s.yaml:4: DataSource/a credentials.password.env: the environment variable NOPE is not set",
		"{env: EMPTY}":       "the environment variable EMPTY is empty",
		"{file: nope}":       "s.yaml:4: DataSource/a credentials.password.file: open ",
		"{file: empty}":      "empty is empty",
		"{file: /dev/zero}":  "is larger than 65536 bytes",
		"{env: PW, file: x}": "must be text, {env: NAME} or {file: PATH}",
		"[a]":                "must be text, not a list",
	} {
		if _, err := load(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPaths(t *testing.T) {
	dir := t.TempDir()
	zone := func(name string) string { return "kind: PrivateDNSZone\nname: " + name + "\n" }
	write(t, filepath.Join(dir, "b.yml"), zone("b"))
	write(t, filepath.Join(dir, "a.yaml"), zone("a"))
	write(t, filepath.Join(dir, "c.txt"), "not: yaml of ours")
	write(t, filepath.Join(dir, ".#a.yaml"), "an editor's lock")
	if err := os.MkdirAll(filepath.Join(dir, "sub", "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "sub", "d.yaml"), zone("d"))

	res, err := config.Load(config.Options{Stdin: strings.NewReader(zone("in"))}, dir, "-")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(res.Documents); got != "[PrivateDNSZone/a PrivateDNSZone/b PrivateDNSZone/in]" {
		t.Error(got)
	}

	_, err = config.Load(config.Options{}, filepath.Join(dir, "sub"), filepath.Join(dir, "nope"), filepath.Join(dir, "sub", "empty"), filepath.Join(dir, "sub", "d.yaml"))
	want := dir + "/nope: no such file or directory\n" +
		dir + "/sub/empty: the folder holds no *.yaml or *.yml file\n" +
		dir + "/sub/d.yaml:2: PrivateDNSZone/d name: PrivateDNSZone/d is declared twice, first at " + dir + "/sub/d.yaml:1"
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Error(diff)
	}
}

func TestPlace(t *testing.T) {
	res, err := config.Load(config.Options{LookupEnv: env("ORDERS_PASSWORD", "x")}, example)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ object, field, want string }{
		{"VirtualNetwork/corp", "subnets[1].prefix", "network.yaml:12:13"},
		{"VirtualNetwork/corp", "subnets[0].natGateway", "network.yaml:10:17"},
		{"VirtualNetwork/corp", "subnets[1].natGateway", "network.yaml:11:5"}, // not written: its subnet
		{"VirtualNetwork/corp", "addressSpace[0]", "network.yaml:4:16"},
		{"VirtualNetwork/corp", "subnets", "network.yaml:5:1"},
		{"PrivateEndpoint/orders-db", "dnsName", "network.yaml:47:10"},
		{"PrivateEndpoint/orders-db", "", "network.yaml:41:1"},
		{"DataSource/orders", "parameters.port", "gateway.yaml:13:48"},
		{"DataSource/orders", "credentials.password", "gateway.yaml:17:3"},
	} {
		at, ok := config.Locate(res.Documents, c.object, c.field)
		got := fmt.Sprintf("%s:%d:%d", filepath.Base(at.File), at.Line, at.Column)
		if !ok || got != c.want {
			t.Errorf("%s %s: at %s, want %s", c.object, c.field, got, c.want)
		}
	}

	e := errs.New(errs.Conflict, "overlaps subnets[0]").On("VirtualNetwork/corp", "subnets[1].prefix").WithHint("h")
	placed := config.Place(res.Documents, e)
	if got, want := placed.Error(), "../../examples/corp/network.yaml:12: VirtualNetwork/corp subnets[1].prefix: overlaps subnets[0]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if as := errs.As(placed); as.Class != errs.Conflict || as.Hint != "h" {
		t.Errorf("lost: %+v", as)
	}
	other := config.Place(res.Documents, errs.New(errs.Invalid, "bad").On("Gateway/x", "vnet"))
	if got, want := other.Error(), "Gateway/x vnet: bad"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDecodeJSON(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"kind and status ignored": {`{"kind":5,"status":{"a":1},"name":"g","members":{"min":1,"max":2}}`, ""},
		"number for text":         {`{"name":"g","vnet":5}`, "Gateway/g vnet: must be text, not a number"},
		"null is absent":          {`{"name":"g","vnet":null}`, ""},
		"unknown field":           {`{"name":"g","vnets":"x"}`, `Gateway/g vnets: unknown field "vnets": did you mean "vnet"?`},
		"another case":            {`{"name":"g","VNet":"x"}`, `Gateway/g VNet: unknown field "VNet": did you mean "vnet"?`},
		"twice":                   {`{"name":"g","vnet":"x","vnet":"y"}`, `Gateway/g vnet: the key "vnet" stands here twice`},
		"no name":                 {`{}`, "Gateway name: a Gateway needs a name"},
		"not an object":           {`[]`, "Gateway : a resource is a mapping, not a list"},
		"more behind":             {`{"name":"g"} {}`, "Gateway : not a JSON object: something follows the object"},
		"cut off":                 {`{"name":"g"`, "Gateway : not a JSON object: unexpected EOF"},
		"nothing":                 {``, "Gateway : not a JSON object: unexpected EOF"},
		"deep":                    {strings.Repeat("[", 1000), "Gateway : not a JSON object: nested deeper than 64 levels"},
		"several":                 {`{"vnet":1,"autoPause":"x"}`, "Gateway vnet: must be text, not a number\nGateway autoPause: \"x\" is not a duration such as \"30s\", \"4m\" or \"1h30m\"\nGateway name: a Gateway needs a name"},
	} {
		t.Run(name, func(t *testing.T) {
			res, problems := config.DecodeJSON(core.KindGateway, json.RawMessage(c.in))
			var lines []string
			for _, p := range problems {
				lines = append(lines, p.Object+" "+p.Field+": "+p.Message)
				if p.Class != errs.Invalid {
					t.Errorf("class %s", p.Class)
				}
			}
			if diff := cmp.Diff(c.want, strings.Join(lines, "\n")); diff != "" {
				t.Error(diff)
			}
			if (res == nil) != (len(problems) > 0) {
				t.Errorf("resource %v with problems %v", res, problems)
			}
		})
	}
	_, problems := config.DecodeJSON(core.KindDataSource, json.RawMessage(`{"name":"d","credentials":{"password":{"env":"HOME"}}}`))
	if len(problems) != 1 || problems[0].Field != "credentials.password" {
		t.Errorf("the service must not read its own environment for a caller: %v", problems)
	}
	r, problems := config.DecodeJSON(core.KindDataSource, json.RawMessage(`{"name":"d","parameters":{"port":5432,"x":true}}`))
	if problems != nil || r.(*core.DataSource).Parameters["port"] != "5432" || r.(*core.DataSource).Parameters["x"] != "true" {
		t.Errorf("a port needs no quotes: %v %v", r, problems)
	}
	_, problems = config.DecodeJSON("Peering", nil)
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "VirtualNetwork") {
		t.Errorf("unknown kind: %v", problems)
	}
}

// An alias that contains itself, or that stands for very much, must end in an error.
func TestBombs(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("kind: PrivateDNSZone\nname: a\nstatus:\n  - &a [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 'b'; i < 'k'; i++ {
		fmt.Fprintf(&bomb, "  - &%c [%s]\n", i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", i-1), 10), ","))
	}
	for name, in := range map[string]string{
		"self":    "kind: PrivateDNSZone\nname: a\nvnets: &v [*v]\n",
		"billion": bomb.String(),
		"deep":    "kind: Gateway\nname: a\nvnet: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
		"large":   strings.Repeat("#", 17<<20),
	} {
		if _, err := read(in); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, name := range []string{"gateway.yaml", "network.yaml"} {
		b, err := os.ReadFile(filepath.Join(example, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("kind: Gateway\nname: &a [*a]\n<<: *a\n? [x]\n: !!binary aa\n")
	f.Add("%YAML 1.1\n--- !t\nkind: !!str DataSource\nname: 0x1\nparameters: {a: 1e9, b: .nan}\n...\n")
	f.Fuzz(func(t *testing.T, in string) {
		res, err := read(in, "ORDERS_PASSWORD", "x")
		if err != nil {
			if err.Error() == "" || errs.ClassOf(err) != errs.Invalid {
				t.Errorf("%q %s", err, errs.ClassOf(err))
			}
			return
		}
		for _, d := range res.Documents {
			r, problems := config.DecodeJSON(d.Kind, d.JSON)
			if len(problems) > 0 || r.ResourceName() != d.Name {
				t.Errorf("%s: accepted from YAML, not as JSON %s: %v", d, d.JSON, problems)
			}
		}
	})
}

func FuzzDecodeJSON(f *testing.F) {
	f.Add(0, `{"name":"a","subnets":[{"name":"s","prefix":"10.0.0.0/24"}]}`)
	f.Add(5, `{"name":"a","members":{"min":1e400},"size":{"cpus":-0}}`)
	f.Add(6, `{"name":"a","parameters":{"p":1,"q":true,"r":null},"readOnly":false,"credentials":{"password":"\ud800"}}`)
	f.Fuzz(func(t *testing.T, k int, in string) {
		kind := core.Kinds()[uint(k)%uint(len(core.Kinds()))]
		r, problems := config.DecodeJSON(kind, json.RawMessage(in))
		if (r == nil) == (len(problems) == 0) {
			t.Fatalf("%v with %v", r, problems)
		}
		if r == nil {
			return
		}
		// What was accepted reads the same again.
		once, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, problems := config.DecodeJSON(kind, once)
		if len(problems) > 0 {
			t.Fatalf("%s is refused: %v", once, problems)
		}
		twice, _ := json.Marshal(again)
		if diff := cmp.Diff(string(once), string(twice)); diff != "" {
			t.Error(diff)
		}
	})
}
