package e2e

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/testpg"
	"github.com/sluice-gateway/sluice/test/e2e/stack"
)

// The names of the example's resources, which tests rely on.
const (
	exampleDir = "../../examples/corp"
	gateway    = "corp-bi"
	source     = "orders"
	password   = "correct horse battery staple"
)

// corp is an installation with the example's resources and the database behind them.
type corp struct {
	*stack.Stack
	PG      *testpg.Server
	Example string // the folder with the example's copy, its target replaced
	t       stack.TB
}

// newCorp makes an installation, alone on the machine as far as it knows, with the
// example applied and its data source working. The database server is shared: a test
// that stops it, or that changes more than tables of its own, uses newCorpOn.
func newCorp(t *testing.T) *corp {
	t.Helper()
	return newCorpOn(t, sharedPG(t))
}

// newCorpOn is newCorp with a database server of the test's own: see startPG.
func newCorpOn(t *testing.T, pg *testpg.Server) *corp {
	t.Helper()
	c := prepareCorp(t, t, pg)
	c.Up()
	c.applyExample()
	return c
}

// prepareCorp prepares an installation and a copy of the example; nothing runs yet.
func prepareCorp(t, owner stack.TB, pg *testpg.Server) *corp {
	t.Helper()
	return corpOn(t, stack.New(owner), pg)
}

// corpOn is a prepared installation with a copy of the example.
func corpOn(t stack.TB, s *stack.Stack, pg *testpg.Server) *corp {
	t.Helper()
	return &corp{Stack: s, PG: pg, Example: copyExample(t, s.Dir, pg.Port), t: t}
}

var shared struct {
	once sync.Once
	pg   *testpg.Server
	corp *corp

	pgOnce sync.Once
}

// sharedCorp returns the package's one installation, for tests that only query: they
// must not change its resources, nor stop anything of it.
func sharedCorp(t *testing.T) *corp {
	t.Helper()
	pg := sharedPG(t)
	shared.once.Do(func() {
		apart(func() {
			c := prepareCorp(&whole, &whole, pg)
			c.Up()
			c.applyExample()
			shared.corp = c
		})
	})
	if shared.corp == nil {
		t.Fatal("the shared installation did not start: see the first test that used it")
	}
	return shared.corp.on(t)
}

// sharedPG returns the package's one database server with the example's database.
func sharedPG(t testing.TB) *testpg.Server {
	t.Helper()
	shared.pgOnce.Do(func() { apart(func() { shared.pg = startPG(&whole) }) })
	if shared.pg == nil {
		t.Fatal("the shared database server did not start: see the first test that used it")
	}
	return shared.pg
}

// startPG starts a database server with the example's user and database.
func startPG(t testpg.TB, opts ...testpg.Option) *testpg.Server {
	t.Helper()
	pg := testpg.Start(t, append(opts, testpg.WithUser("report", password))...)
	pg.Exec(t, "create database orders owner report")
	pg.Database, pg.User, pg.Password = "orders", "report", password
	return pg
}

// copyExample copies the example to dir/example with the database's port replaced
// wherever it stands, and nothing else: an endpoint answers on its target's port.
func copyExample(t stack.TB, dir string, port int) string {
	t.Helper()
	out := filepath.Join(dir, "example")
	if err := os.MkdirAll(out, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"network.yaml", "gateway.yaml"} {
		text, err := os.ReadFile(filepath.Join(exampleDir, name))
		if err != nil {
			t.Fatal(err)
		}
		doc := strings.ReplaceAll(string(text), "5432", strconv.Itoa(port))
		if err := os.WriteFile(filepath.Join(out, name), []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// applyExample applies the example's copy and returns what the command printed.
func (c *corp) applyExample() string {
	c.t.Helper()
	r := c.SluiceEnv([]string{"ORDERS_PASSWORD=" + c.PG.Password}, "apply", "-f", c.Example)
	if r.Exit != 0 {
		c.t.Fatalf("apply the example: exit status %d\n%s%s", r.Exit, r.Out, r.Err)
	}
	return r.Out
}

// rewrite changes the example's copy by replacing text, which must be there.
func (c *corp) rewrite(file, old, with string) {
	c.t.Helper()
	path := filepath.Join(c.Example, file)
	text, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		c.t.Fatalf("%s does not contain %q", file, old)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), old, with)), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// query runs SQL through the gateway on the example's data source.
func (c *corp) query(sql string, flags ...string) stack.Result {
	c.t.Helper()
	return c.Sluice(append(append([]string{"query", "-s", source, "-o", "csv"}, flags...), sql)...)
}

// rows is query for a statement that must succeed; the header is left out.
func (c *corp) rows(sql string, flags ...string) [][]string {
	c.t.Helper()
	r := c.query(sql, flags...)
	if r.Exit != 0 {
		c.t.Fatalf("query %s: exit status %d\n%s", sql, r.Exit, r.Err)
	}
	rows, err := csv.NewReader(strings.NewReader(r.Out)).ReadAll()
	if err != nil || len(rows) == 0 {
		c.t.Fatalf("query %s: no CSV: %v\n%s", sql, err, r.Out)
	}
	return rows[1:]
}

// value is rows for a statement with one value.
func (c *corp) value(sql string, flags ...string) string {
	c.t.Helper()
	rows := c.rows(sql, flags...)
	if len(rows) != 1 || len(rows[0]) != 1 {
		c.t.Fatalf("query %s: want one value, got %q", sql, rows)
	}
	return rows[0][0]
}

// eventually asks until ok says yes, for at most the given time.
func eventually(t stack.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// wantFailure checks how a command failed: its exit status, and that standard error
// holds every text.
func wantFailure(t stack.TB, r stack.Result, exit int, texts ...string) {
	t.Helper()
	if r.Exit != exit {
		t.Errorf("exit status %d, want %d\nstdout: %.2000s\nstderr: %s", r.Exit, exit, r.Out, r.Err)
	}
	if !strings.HasPrefix(r.Err, "error: ") && !strings.Contains(r.Err, "\nerror: ") {
		t.Errorf("standard error has no line that begins with \"error: \":\n%s", r.Err)
	}
	for _, text := range texts {
		if !strings.Contains(r.Err, text) {
			t.Errorf("standard error lacks %q:\n%s", text, r.Err)
		}
	}
}

// activity counts the sessions at the server whose current statement contains text.
func (c *corp) activity(text string) int {
	c.t.Helper()
	quoted := "'%" + strings.ReplaceAll(text, "'", "''") + "%'"
	rows := c.PG.Rows(c.t, "select pid from pg_stat_activity where pid <> pg_backend_pid() and state <> 'idle' and query like "+quoted)
	return len(rows)
}

// queryOf is a query on the example's data source.
func queryOf(sql string) client.Query { return client.Query{Source: source, SQL: sql} }

// on is the same installation for a subtest, which then fails by itself.
func (c *corp) on(t *testing.T) *corp {
	view := *c
	view.Stack, view.t = c.For(t), t
	return &view
}
