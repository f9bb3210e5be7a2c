package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/testpg"
)

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func sourceOf(s *testpg.Server) memberapi.Source {
	return memberapi.Source{
		Name: "test", Type: "postgres", ReadOnly: true,
		Parameters: map[string]string{"host": s.Host, "port": strconv.Itoa(s.Port), "database": s.Database, "tls": "disable"},
		Credential: core.CredentialBasic, Username: s.User, Password: s.Password,
	}
}

func noNames(context.Context, string) ([]string, error) { return nil, errors.New("no such name") }

// openSource opens a source; edit changes it first.
func openSource(t testing.TB, s *testpg.Server, edit ...func(*memberapi.Source)) *database {
	t.Helper()
	src := sourceOf(s)
	for _, e := range edit {
		e(&src)
	}
	db, err := New().Open(src, connector.Options{Resolve: func(_ context.Context, host string) ([]string, error) {
		if host == "db.example" {
			return []string{"127.0.0.1"}, nil
		}
		return nil, fmt.Errorf("%s: no such name, asked 10.0.0.2", host)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db.(*database)
}

func writable(src *memberapi.Source) { src.ReadOnly = false }

func with(name, value string) func(*memberapi.Source) {
	return func(src *memberapi.Source) { src.Parameters[name] = value }
}

func newStatement(t testing.TB, db *database, sql string) *statement {
	t.Helper()
	st := &statement{db: db}
	if err := st.SetSqlQuery(sql); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// collect runs a query and returns its schema and batches.
func collect(ctx context.Context, st *statement) (*arrow.Schema, []arrow.RecordBatch, error) {
	r, _, err := st.ExecuteQuery(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer r.Release()
	var recs []arrow.RecordBatch
	for r.Next() {
		r.RecordBatch().Retain()
		recs = append(recs, r.RecordBatch())
	}
	return r.Schema(), recs, r.Err()
}

// queryRows runs a query and formats every value as PostgreSQL prints it.
func queryRows(t testing.TB, db *database, sql string) [][]string {
	t.Helper()
	schema, recs, err := collect(testContext(t), newStatement(t, db, sql))
	if err != nil {
		t.Fatalf("%v\nin: %.300s", err, sql)
	}
	return formatRows(t, schema, recs)
}

func queryValue(t testing.TB, db *database, sql string) string {
	t.Helper()
	rows := queryRows(t, db, sql)
	if len(rows) != 1 || len(rows[0]) != 1 {
		t.Fatalf("want one value, got %v in: %s", rows, sql)
	}
	return rows[0][0]
}

// queryErr runs a query that must fail.
func queryErr(t testing.TB, db *database, sql string) *errs.Error {
	t.Helper()
	_, recs, err := collect(testContext(t), newStatement(t, db, sql))
	if err == nil {
		t.Fatalf("no error, %d batches, in: %.300s", len(recs), sql)
	}
	var e *errs.Error
	if !errors.As(err, &e) {
		t.Fatalf("not an *errs.Error: %T %v", err, err)
	}
	return e
}

func countRows(recs []arrow.RecordBatch) (n int64) {
	for _, r := range recs {
		n += r.NumRows()
	}
	return n
}

func listenLocal(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func portOf(l net.Listener) string { return strconv.Itoa(l.Addr().(*net.TCPAddr).Port) }
