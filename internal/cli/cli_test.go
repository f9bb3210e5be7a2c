package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// said is what a command left.
type said struct {
	out, err string
	exit     int
}

// run runs a command line against a service that answers with h; nil is none.
func run(t *testing.T, h http.HandlerFunc, in string, args ...string) said {
	t.Helper()
	t.Setenv("SLUICE_URL", "http://127.0.0.1:1")
	if h != nil {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		t.Setenv("SLUICE_URL", srv.URL)
	}
	var out, errOut bytes.Buffer
	root := Root("test", Options{In: strings.NewReader(in), Out: &out, Err: &errOut})
	root.SetArgs(args)
	exit := Execute(context.Background(), root)
	return said{out.String(), errOut.String(), exit}
}

// answer is a service that gives one answer to everything.
func answer(status int, doc any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(doc)
	}
}

func refusedWith(class, message, hint string) map[string]any {
	return map[string]any{"error": map[string]any{"class": class, "message": message, "hint": hint}}
}

// What is wrong with a command line is said in its own terms, with the way to the right one.
func TestWrongCommandLines(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"no argument", []string{"get"}, "error: sluice get was given no argument\nhint: usage: sluice get KIND [NAME] [flags]\n"},
		{"too many", []string{"query", "-s", "x", "select", "1"}, "error: sluice query was given 2 arguments: \"select\", \"1\"\nhint: usage: sluice query -s SOURCE SQL [flags]\n"},
		{"one where none is taken", []string{"token", "renew", "now"}, "error: sluice token renew was given 1 argument: \"now\"\nhint: usage: sluice token renew [flags]\n"},
		{"a subcommand that there is not", []string{"gateway", "start", "g"}, "error: unknown command \"start\" for \"sluice gateway\"\nhint: sluice gateway --help\n"},
		{"the same where a command runs by itself", []string{"queries", "a", "b"}, "error: unknown command \"a\" for \"sluice queries\"\nhint: sluice queries --help\n"},
		{"a number", []string{"queries", "--limit", "many"}, "error: --limit \"many\" is not a whole number\nhint: sluice queries --help\n"},
		{"a duration", []string{"query", "-s", "x", "--timeout", "30", "select 1"}, "error: --timeout \"30\" is not a duration such as 30s, 4m or 1h30m\nhint: sluice query --help\n"},
		{"SQL that begins with a dash", []string{"query", "-s", "x", "-- a comment"}, "error: unknown flag: -- a comment\nhint: sluice query --help; in front of SQL that begins with a dash, write --\n"},
		{"half a pair", []string{"delete", "gateway"}, "error: delete needs pairs of KIND NAME, and was given 1 argument: \"gateway\"\nhint: sluice delete virtualnetwork corp natgateway egress; or -f FILE\n"},
		{"a gateway and a subnet", []string{"check", "-g", "g", "--vnet", "v", "--subnet", "s", "--effective-rules"}, "error: a check is about a gateway or about a subnet, not both\nhint: -g GATEWAY, or --vnet VNET --subnet SUBNET\n"},
		{"no port", []string{"check", "-g", "g", "--to", "10.0.0.1"}, "error: --to \"10.0.0.1\" is not HOST:PORT\nhint: such as db.corp.internal:5432 or 10.20.1.4:443\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := run(t, nil, "", tc.args...)
			if diff := cmp.Diff(said{err: tc.want, exit: 2}, got, cmp.AllowUnexported(said{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// JSON would replace what is not UTF-8, so that another statement than the user's would run.
func TestSQLIsText(t *testing.T) {
	h := func(http.ResponseWriter, *http.Request) { t.Error("the service was asked") }
	got := run(t, h, "select '\xff'", "query", "-s", "x", "-")
	if got.exit != 2 || !strings.HasPrefix(got.err, "error: the SQL is not UTF-8 text\nhint: ") {
		t.Errorf("%+v", got)
	}
}

func TestWhatDoesNotExist(t *testing.T) {
	none := answer(404, refusedWith("not-found", "Gateway/g does not exist", ""))
	for _, args := range [][]string{{"get", "gateway", "g"}, {"delete", "gateway", "g"}} {
		got := run(t, none, "", args...)
		want := said{err: "error: Gateway/g does not exist\nhint: \"sluice get gateways\" lists them\n", exit: 3}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(said{})); diff != "" {
			t.Errorf("%v: -want +got:\n%s", args, diff)
		}
	}
	own := run(t, answer(404, refusedWith("not-found", "Link/l does not exist", "its own hint")), "", "delete", "link", "l", "--force")
	if !strings.HasSuffix(own.err, "hint: its own hint\n") {
		t.Errorf("a hint of the service's was replaced: %q", own.err)
	}
}

// Whoever sends no token is told how, whoever sends a wrong one what the service says.
func TestWithoutToken(t *testing.T) {
	h := answer(401, refusedWith("unauthenticated", "the request carries no valid token", "the service's hint"))
	for token, want := range map[string]string{"": "hint: set SLUICE_TOKEN; ", "wrong": "hint: the service's hint\n"} {
		t.Setenv("SLUICE_TOKEN", token)
		if got := run(t, h, "", "get", "gateways"); got.exit != 4 || !strings.Contains(got.err, want) {
			t.Errorf("token %q: %+v", token, got)
		}
	}
}

func TestWakeInVain(t *testing.T) {
	held := make(chan struct{})
	defer close(held)
	h := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-held:
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}
	}
	got := run(t, h, "", "gateway", "wake", "g", "--timeout", "20ms")
	want := "error: gateway g: wake was not done within 20ms\nhint: \"sluice get gateway g\" shows how far it is; --timeout waits longer\n"
	if got.exit != 124 || got.err != want {
		t.Errorf("%+v", got)
	}
}

func TestCheckShows(t *testing.T) {
	for _, tc := range []struct {
		name   string
		args   []string
		answer map[string]any
		out    string
		exit   int
		err    string
	}{
		{
			"a route to nowhere once", []string{"--next-hop", "10.30.2.4"},
			map[string]any{"source": "10.20.0.4", "destination": "10.30.2.4", "nextHop": map[string]any{"nextHop": "None", "route": "route t/no (10.30.0.0/16 → None)", "reason": "route t/no (10.30.0.0/16 → None)"}},
			"next hop: None  10.20.0.4 → 10.30.2.4\n  route t/no (10.30.0.0/16 → None)\n", 0, "",
		},
		{
			"a name that nobody was asked for", []string{"--dry", "--to", "www.example.org:443"},
			map[string]any{"source": "10.20.0.4", "reasons": []string{"it is in no private zone"}},
			"rules: unknown  10.20.0.4 → www.example.org:443\n  it is in no private zone\n", 1, "what the rules say of www.example.org:443 is not known",
		},
		{
			"a protocol without ports", []string{"--dry", "--protocol", "icmp", "--to", "10.9.0.1"},
			map[string]any{"source": "10.20.0.4", "destination": "10.9.0.1", "allowed": true},
			"rules: allowed  10.20.0.4 → 10.9.0.1\n", 0, "",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := run(t, answer(200, tc.answer), "", append([]string{"check", "-g", "g"}, tc.args...)...)
			if got.out != tc.out || got.exit != tc.exit || !strings.Contains(got.err, tc.err) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A statement of megabytes must not make each line of the query log as long.
func TestQueryLogIsReadable(t *testing.T) {
	h := answer(200, map[string]any{"items": []any{
		map[string]any{"id": "q-1", "state": "failed", "sql": "select " + strings.Repeat("1+", 100_000) + "1", "error": "stack depth"},
		map[string]any{"id": "q-2", "state": "succeeded", "sql": "select\n 1"},
	}})
	got := run(t, h, "", "queries")
	for l := range strings.Lines(got.out) {
		if len(l) > 400 {
			t.Fatalf("a line of %d bytes", len(l))
		}
	}
	if !strings.Contains(got.out, "+…  stack depth\n") || !strings.Contains(got.out, "select 1") {
		t.Errorf("%s", got.out)
	}
}

// On a narrow terminal, the name by which a row's object is asked for stays whole.
func TestNarrowTable(t *testing.T) {
	for _, tc := range []struct {
		width        int
		widths, want []int
	}{
		{80, []int{22, 9, 60}, []int{22, 9, 45}},
		{40, []int{22, 9, 60}, []int{22, 8, 8}},
		{10, []int{22}, []int{22}},
		{200, []int{22, 9, 60}, []int{22, 9, 60}},
		{30, []int{22, 0, 60}, []int{22, 0, 8}},
	} {
		got := append([]int{}, tc.widths...)
		fit(got, tc.width)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%v in %d: -want +got:\n%s", tc.widths, tc.width, diff)
		}
	}
}
