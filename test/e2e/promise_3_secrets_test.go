package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/wire"
)

// secret is a password that occurs nowhere else, with the forms in which it might be
// written without being sealed.
type secret struct {
	value string
	forms map[string][]byte
}

// newSecret makes a password of letters and digits, which no quoting changes.
func newSecret() secret {
	raw := make([]byte, 15)
	_, _ = rand.Read(raw) // never fails
	value := "Pw" + hex.EncodeToString(raw)
	reversed := []byte(value)
	slices.Reverse(reversed)
	return secret{value, map[string][]byte{
		"in the clear": []byte(value),
		"in hex":       []byte(hex.EncodeToString([]byte(value))),
		"reversed":     reversed,
		"in base64":    []byte(strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(value)), "=")[:32]),
	}}
}

// in returns how the secret stands in data, or "".
func (s secret) in(data []byte) string {
	for how, form := range s.forms {
		if bytes.Contains(data, form) {
			return how
		}
	}
	return ""
}

// watchProcesses reads command lines and environments of everything that runs, until the
// function that it returns is called, which tells how many programs it saw by name.
func watchProcesses(t *testing.T, secrets []secret) (stop func() map[string]bool) {
	t.Helper()
	done, ended := make(chan struct{}), make(chan struct{})
	seen := map[string]bool{}
	look := func() {
		procs, _ := filepath.Glob("/proc/[0-9]*")
		for _, p := range procs {
			cmdline, _ := os.ReadFile(p + "/cmdline")
			environ, _ := os.ReadFile(p + "/environ")
			argv0, _, _ := strings.Cut(string(cmdline), "\x00")
			seen[filepath.Base(argv0)] = true
			for _, s := range secrets {
				if how := s.in(cmdline); how != "" {
					t.Errorf("the password is %s in the command line of %s", how, argv0)
				}
				if how := s.in(environ); how != "" {
					t.Errorf("the password is %s in the environment of %s", how, argv0)
				}
			}
		}
	}
	go func() {
		defer close(ended)
		for {
			look()
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	var once sync.Once
	finish := func() { once.Do(func() { close(done) }); <-ended }
	t.Cleanup(finish)
	return func() map[string]bool { finish(); return seen }
}

// TestPromise3CredentialsNowhere uses passwords, a good one and a wrong one, in every way
// that there is, at debug level, and then looks for them everywhere.
func TestPromise3CredentialsNowhere(t *testing.T) {
	busy.take(t)
	good, wrong := newSecret(), newSecret()
	secrets := []secret{good, wrong}
	pg := *sharedPG(t)
	role := "p3_" + good.value[2:10]
	pg.Exec(t, fmt.Sprintf("create role %s login password '%s'", role, good.value))
	t.Cleanup(func() { pg.Exec(t, "drop owned by "+role+"; drop role "+role) })
	l := prepareLab(t, &pg)
	l.serviceFlags, l.hostFlags = []string{"--log-level", "debug"}, []string{"--log-level", "debug"}
	passwords := t.TempDir() // outside of everything that Sluice owns
	passwordFile := filepath.Join(passwords, "password")
	l.rewrite("gateway.yaml", "{env: ORDERS_PASSWORD}", "{file: "+passwordFile+"}")
	l.rewrite("gateway.yaml", "username: report", "username: "+role)
	watched := watchProcesses(t, secrets)
	l.startService()
	l.startHost()
	l.Ready()
	apply := func(s secret) {
		t.Helper()
		if err := os.WriteFile(passwordFile, []byte(s.value), 0o600); err != nil {
			t.Fatal(err)
		}
		said := l.Must("apply", "-f", l.Example)
		findIn(t, secrets, "what apply printed", []byte(said))
	}
	apply(good)
	use(t, l, secrets, true)
	apply(wrong)
	use(t, l, secrets, false)
	l.kill("service") // what stays in the write-ahead log counts as well
	searchFiles(t, l, secrets)
	l.startService()
	l.Ready()
	apply(good)
	use(t, l, secrets, true)
	searchAnswers(t, l, secrets)
	searchGoal(t, l, secrets)
	searchFiles(t, l, secrets)
	for name := range l.logs() {
		findIn(t, secrets, "the log of "+name, []byte(l.logs()[name]))
	}
	if !strings.Contains(l.logs()["host"], "level=DEBUG") {
		t.Error("no debug line was written: this test means less than it says")
	}
	seen := watched()
	for _, program := range []string{"sluice", "sluice-gateway", "runc"} {
		if !seen[program] {
			t.Errorf("no process of %s was looked at", program)
		}
	}
}

func findIn(t testing.TB, secrets []secret, where string, data []byte) {
	t.Helper()
	for i, s := range secrets {
		if how := s.in(data); how != "" {
			t.Errorf("password %d is %s in %s", i, how, where)
		}
	}
}

// logs are what the installation's programs and members wrote.
func (l *lab) logs() map[string]string {
	out := map[string]string{"service": l.written["service"].String(), "host": l.written["host"].String()}
	files, _ := filepath.Glob(l.Run + "/members/bundles/*/log")
	for _, f := range files {
		text, _ := os.ReadFile(f)
		out[f] = string(text)
	}
	return out
}

// use runs queries and commands, good and failing ones, and looks at what they say.
func use(t *testing.T, l *lab, secrets []secret, works bool) {
	t.Helper()
	for _, args := range [][]string{
		{"query", "-s", source, "-o", "json", "select 1"},
		{"query", "-s", source, "--timeline", "selec 1"},
		{"query", "-s", source, "select * from nowhere"},
		{"query", "-s", source, "--timeout", "200ms", "select pg_sleep(5)"},
		{"datasource", "test", source},
		{"check", "-g", gateway, "--dry", "--to", "orders.corp.internal:1"},
	} {
		r := l.Sluice(args...)
		findIn(t, secrets, "what "+strings.Join(args, " ")+" printed", []byte(r.Out+r.Err))
		if first := args[len(args)-1] == "select 1"; first && (r.Exit == 0) != works {
			t.Errorf("%v: exit status %d, want success %v\n%s", args, r.Exit, works, r.Err)
		}
	}
	out := postQuery(t, l, "text/csv", "selec 1")
	findIn(t, secrets, "the answer to a wrong query", out)
}

// postQuery speaks HTTP over TCP as curl would, and returns the whole answer.
func postQuery(t *testing.T, l *lab, accept, sql string) []byte {
	t.Helper()
	body, err := json.Marshal(map[string]string{"source": source, "sql": sql})
	if err != nil {
		t.Fatal(err)
	}
	return request(t, l, http.MethodPost, "/v1/query", accept, body)
}

func request(t *testing.T, l *lab, method, path, accept string, body []byte) []byte {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+l.HTTP+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+l.Token())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	doc, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(fmt.Sprint(resp.Header) + string(doc))
}

// searchAnswers asks for every kind in every format, one by one and as lists.
func searchAnswers(t *testing.T, l *lab, secrets []secret) {
	t.Helper()
	asked := 0
	for _, kind := range []string{
		"virtualnetworks", "networksecuritygroups", "natgateways", "privatednszones", "privateendpoints",
		"gateways", "members", "datasources", "hosts", "leases", "queries",
	} {
		list := request(t, l, http.MethodGet, "/v1/"+kind, "application/json", nil)
		findIn(t, secrets, "GET /v1/"+kind, list)
		for _, format := range []string{"table", "json", "yaml"} {
			findIn(t, secrets, "get "+kind+" -o "+format, []byte(l.Must("get", kind, "-o", format)))
		}
		for _, o := range objects[struct{ Name, ID, Address string }](t, l.api, kind) {
			name := o.Name + o.ID
			if name == "" {
				name = o.Address
			}
			findIn(t, secrets, kind+"/"+name, request(t, l, http.MethodGet, "/v1/"+kind+"/"+name, "application/json", nil))
			asked++
		}
	}
	for _, path := range []string{"/metrics", "/healthz", "/readyz", "/v1", "/debug/pprof/cmdline", "/debug/vars"} {
		findIn(t, secrets, "GET "+path, request(t, l, http.MethodGet, path, "*/*", nil))
	}
	if asked < 10 {
		t.Errorf("only %d objects were asked for", asked)
	}
}

// searchGoal takes the host's place and reads the goal state that the service sends.
func searchGoal(t *testing.T, l *lab, secrets []secret) {
	t.Helper()
	l.kill("host")
	host := objects[core.Host](t, l.api, "hosts")[0]
	goal := goalOf(t, l, host)
	if len(goal.VNets) == 0 || len(goal.Members) == 0 {
		t.Errorf("the goal state has %d networks and %d members: nothing to look at", len(goal.VNets), len(goal.Members))
	}
	doc, err := json.Marshal(goal)
	if err != nil {
		t.Fatal(err)
	}
	findIn(t, secrets, "the goal state", doc)
	if bytes.Contains(doc, []byte(sourceUser(l))) {
		t.Error("the goal state has the user name of a data source")
	}
	l.startHost()
	l.Ready()
}

func sourceUser(l *lab) string {
	text, _ := os.ReadFile(filepath.Join(l.Example, "gateway.yaml"))
	_, rest, _ := strings.Cut(string(text), "username: ")
	user, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(user)
}

// goalOf joins the service as the host that it knows and returns the first goal state.
func goalOf(t *testing.T, l *lab, host core.Host) core.GoalState {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ca, err := os.ReadFile(l.Data + "/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(l.Data + "/host.token")
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", l.Hosts) }
	keeper, err := identity.New(identity.KeeperOptions{
		Role: memberapi.RoleHost, Name: host.Name, Token: core.NewSecret(strings.TrimSpace(string(token))), CAPEM: ca, Dial: dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := keeper.Join(ctx); err != nil {
		t.Fatal(err)
	}
	raw, err := dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	conn := tls.Client(raw, keeper.TLSConfig(memberapi.ProtoHost))
	report := core.HostReport{Host: host.Name, Installation: host.Installation} // nothing is complete in it
	if err := wire.Write(conn, hostapi.ToService{Report: &report}); err != nil {
		t.Fatalf("report as the host: %v", err)
	}
	for {
		var msg hostapi.ToHost
		if err := wire.Read(conn, &msg, 0); err != nil {
			t.Fatalf("read the goal state: %v", err)
		}
		if msg.Goal != nil {
			return *msg.Goal
		}
	}
}

// searchFiles reads every file below the data and run directories. The key of the seal
// is there by design, and so is the hosts' token: both for root alone.
func searchFiles(t *testing.T, l *lab, secrets []secret) {
	t.Helper()
	read := map[string]bool{}
	for _, root := range []string{l.Data, l.Run} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && !d.Type().IsRegular() {
				return nil // gone meanwhile, or not a file
			}
			if err != nil {
				return err
			}
			doc, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			read[filepath.Base(path)] = true
			findIn(t, secrets, path, doc)
			if info, err := d.Info(); err == nil && root == l.Data && info.Mode().Perm()&0o077 != 0 && d.Name() != "ca.pem" {
				t.Errorf("%s has mode %v: others may read it", path, info.Mode())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sluice.db", "config.json", "log"} {
		if !read[name] {
			t.Errorf("no file %s was looked at; there were %v", name, read)
		}
	}
	if doc, err := os.ReadFile(l.Data + "/sluice.db"); err == nil && bytes.Contains(doc, []byte(l.Token())) {
		t.Error("the administrator's token is in the database in the clear")
	}
}
