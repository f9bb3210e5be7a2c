package service

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/config"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/hostapi"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/seal"
	"github.com/sluice-gateway/sluice/internal/store/sqlite"
	"github.com/sluice-gateway/sluice/internal/wire"
)

const password = "correct-horse-battery"

// rig is a service on a real store, with a host that obeys at once and a member that
// the test plays as an HTTP handler.
type rig struct {
	t     *testing.T
	dir   string
	svc   *Service
	fleet *fleet.Fleet
	ctx   context.Context

	mu      sync.Mutex
	handler http.HandlerFunc
}

// RoundTripper implements Tunnels: requests go to the rig's handler over real HTTP.
func (r *rig) RoundTripper(string, int64) (http.RoundTripper, error) {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		a, b := net.Pipe()
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r.mu.Lock()
			h := r.handler
			r.mu.Unlock()
			h(w, req)
		}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
		go func() { _ = srv.Serve(&oneConn{conn: b}) }()
		return a, nil
	}}, nil
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	mu   sync.Mutex
	conn net.Conn
}

func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return nil, net.ErrClosed
	}
	c := l.conn
	l.conn = nil
	return c, nil
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "test"} }

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	log := slog.New(slog.DiscardHandler)
	st, err := sqlite.Open(context.Background(), sqlite.Options{Path: filepath.Join(r.dir, "s.db"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := seal.OpenKeyFile(filepath.Join(r.dir, "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	r.fleet, err = fleet.New(context.Background(), fleet.Options{
		Store: st, Logger: log, Disconnect: func(string, int64) {}, DrainTimeout: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.svc, err = New(context.Background(), Options{Store: st, Sealer: sealer, Tunnels: r, Fleet: r.fleet, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.svc.Close()
		r.fleet.Close()
		st.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute) // its subtests may wait for their turn
	t.Cleanup(cancel)
	r.ctx = core.WithPrincipal(ctx, core.Principal{Tenant: core.DefaultTenant, Name: "ann", Role: core.RoleAdmin})
	return r
}

// host plays a host that makes every goal state true at once.
func (r *rig) host() { r.awayHost() }

// awayHost does so until the function that it returns takes it away.
func (r *rig) awayHost() (away func()) {
	a, b := net.Pipe()
	go func() { _ = r.fleet.ServeHost(context.Background(), "h", b) }()
	go func() {
		if wire.Write(a, hostapi.ToService{Report: &core.HostReport{Host: "h", Installation: "i"}}) != nil {
			return
		}
		for {
			var msg hostapi.ToHost
			if wire.Read(a, &msg, 0) != nil {
				return
			}
			if msg.Goal == nil {
				continue
			}
			report := core.HostReport{Host: "h", Version: msg.Goal.Version, Complete: true}
			for _, m := range msg.Goal.Members {
				report.Members = append(report.Members, core.ObservedMember{ID: m.ID, Generation: m.Generation, Present: true, Running: true})
			}
			if wire.Write(a, hostapi.ToService{Report: &report}) != nil {
				return
			}
			r.heard(report.Version) // or a member that is up may belong to a host that has not acted yet
			for _, m := range msg.Goal.Members {
				r.fleet.TunnelUp(m.ID, m.Generation)
			}
		}
	}()
	r.t.Cleanup(func() { a.Close() })
	for len(r.fleet.Hosts()) == 0 {
		time.Sleep(time.Millisecond)
	}
	return func() {
		a.Close()
		for len(r.fleet.Hosts()) != 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// heard waits until the service has taken in the host's report on a goal state, if the host is
// still there to be heard.
func (r *rig) heard(version int64) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		hosts := r.fleet.Hosts()
		if len(hosts) == 0 || hosts[0].SeenVersion >= version {
			return
		}
	}
}

// example returns the documents of examples/corp.
func example(t *testing.T) []Document {
	t.Helper()
	res, err := config.Load(config.Options{LookupEnv: func(string) (string, bool) { return password, true }}, "../../examples/corp")
	if err != nil {
		t.Fatal(err)
	}
	var docs []Document
	for _, d := range res.Documents {
		docs = append(docs, Document{Kind: d.Kind, Spec: d.JSON})
	}
	return docs
}

func doc(kind core.Kind, spec string) Document {
	return Document{Kind: kind, Spec: json.RawMessage(spec)}
}

func (r *rig) apply(docs ...Document) []Applied {
	r.t.Helper()
	out, err := r.svc.Apply(r.ctx, docs, false)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// TestPasswordIsNowhere looks for the password in every answer and every file.
func TestPasswordIsNowhere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	for _, k := range core.Kinds() {
		views, err := r.svc.List(r.ctx, string(k))
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(views)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(password)) {
			t.Errorf("the password is in the answer for %s", k)
		}
	}
	files, _ := filepath.Glob(filepath.Join(r.dir, "*"))
	if len(files) < 2 {
		t.Fatalf("files %v: the store must be among them", files)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(password)) {
			t.Errorf("the password is in %s in the clear", f)
		}
	}
}

func TestNoPrincipalNoAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := context.Background()
	_, applyErr := r.svc.Apply(ctx, nil, false)
	_, getErr := r.svc.Get(ctx, "Gateway", "x")
	_, listErr := r.svc.List(ctx, "Gateway")
	_, queryErr := r.svc.Query(ctx, QueryInput{Source: "orders"})
	_, prepareErr := r.svc.Prepare(ctx, QueryInput{Source: "orders"})
	_, metaErr := r.svc.Metadata(ctx, "orders", memberapi.MetadataRequest{})
	_, testErr := r.svc.TestDataSource(ctx, "orders")
	_, checkErr := r.svc.Check(ctx, core.Check{})
	_, recErr := r.svc.QueryRecord(ctx, "q")
	_, recsErr := r.svc.QueryRecords(ctx, "", 0)
	for name, err := range map[string]error{
		"apply": applyErr, "get": getErr, "list": listErr, "query": queryErr, "prepare": prepareErr, "metadata": metaErr,
		"test": testErr, "check": checkErr, "record": recErr, "records": recsErr,
		"delete": r.svc.Delete(ctx, "Gateway", "x", DeleteOptions{Force: true}), "wake": r.svc.Wake(ctx, "x"),
		"pause": r.svc.Pause(ctx, "x"), "restart": r.svc.Restart(ctx, "x"),
	} {
		if errs.ClassOf(err) != errs.Unauthenticated {
			t.Errorf("%s without a principal: %v", name, err)
		}
	}
}

func TestTenantsDoNotMeet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	other := core.WithPrincipal(r.ctx, core.Principal{Tenant: "other", Name: "bob", Role: core.RoleAdmin})
	if views, err := r.svc.List(other, "Gateway"); err != nil || len(views) != 0 {
		t.Errorf("another tenant sees %d gateways, %v", len(views), err)
	}
	if _, err := r.svc.Query(other, QueryInput{Source: "orders", SQL: "select 1"}); errs.ClassOf(err) != errs.NotFound {
		t.Errorf("another tenant queries: %v, want not found", err)
	}
}

func TestFirstTokenOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token, err := r.svc.FirstToken(r.ctx)
	if err != nil || !strings.HasPrefix(token.Reveal(), tokenPrefix) {
		t.Fatalf("got %v, %v", token, err)
	}
	if again, err := r.svc.FirstToken(r.ctx); err != nil || !again.IsZero() {
		t.Errorf("a second token was made: %v", err)
	}
	p, err := r.svc.Authenticate(r.ctx, token.Reveal())
	if err != nil || p.Role != core.RoleAdmin {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, err := r.svc.Authenticate(r.ctx, token.Reveal()+"x"); errs.ClassOf(err) != errs.Unauthenticated {
		t.Errorf("a wrong token: %v", err)
	}
	for _, name := range []string{"s.db", "s.db-wal"} {
		if b, err := os.ReadFile(filepath.Join(r.dir, name)); err == nil && bytes.Contains(b, []byte(token.Reveal())) {
			t.Errorf("the token is in %s in the clear", name)
		}
	}
}

func TestRenewedTokenReplacesTheOldOne(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first, err := r.svc.FirstToken(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.svc.Authenticate(r.ctx, first.Reveal()); err != nil {
		t.Fatal(err)
	}
	second, err := r.svc.RenewToken(r.ctx)
	if err != nil || !strings.HasPrefix(second.Reveal(), tokenPrefix) || second.Reveal() == first.Reveal() {
		t.Fatalf("got %v, %v", second, err)
	}
	if _, err := r.svc.Authenticate(r.ctx, first.Reveal()); errs.ClassOf(err) != errs.Unauthenticated {
		t.Errorf("the old token: %v, want that it is not known", err)
	}
	if p, err := r.svc.Authenticate(r.ctx, second.Reveal()); err != nil || p.Role != core.RoleAdmin {
		t.Errorf("the new token: %+v, %v", p, err)
	}
	if again, err := r.svc.FirstToken(r.ctx); err != nil || !again.IsZero() {
		t.Errorf("after that a first token was made: %v", err)
	}
	reader := core.WithPrincipal(r.ctx, core.Principal{Tenant: core.DefaultTenant, Name: "bob", Role: "reader"})
	if _, err := r.svc.RenewToken(reader); errs.ClassOf(err) != errs.Denied {
		t.Errorf("somebody else: %v, want a refusal", err)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(example(t)...)
	r.host()
	r.member(answer{200, eosMarker, map[string]string{memberapi.TrailerStatus: memberapi.StatusOK, memberapi.TrailerStats: `{"rows":3}`}, false})
	if _, err := r.query(); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r.svc.Metrics().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`sluice_queries_total{state="succeeded",step=""} 1`, "sluice_result_rows_total 3", `sluice_members{state="ready"} 1`, "sluice_hosts_connected 1",
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("the metrics lack %q", want)
		}
	}
}
