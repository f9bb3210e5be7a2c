package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/testpg"
)

func contextFor(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(context.Background(), d)
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	s := testpg.Start(t, testpg.WithTLS("db.example", "127.0.0.1"))
	silent := listenLocal(t) // accepts, and never says a word
	closed := listenLocal(t)
	go func() {
		for {
			conn, err := closed.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	unused := listenLocal(t)
	unused.Close()
	other := testpg.Start(t, testpg.WithTLS("other.example"))
	for _, c := range []struct {
		name    string
		edit    []func(*memberapi.Source)
		class   errs.Class
		step    string
		state   string
		message string
	}{
		{"unknown name", []func(*memberapi.Source){with("host", "nowhere.example")},
			errs.Unavailable, errs.StepResolve, "", "nowhere.example: no such name, asked 10.0.0.2"},
		{"refused", []func(*memberapi.Source){with("host", "db.example"), with("port", portOf(unused))},
			errs.Unavailable, errs.StepConnect, "", "connect to db.example (127.0.0.1:" + portOf(unused) + "): connection refused"},
		{"silent at sign-in", []func(*memberapi.Source){with("port", portOf(silent)), with("connectTimeout", "200ms")},
			errs.Unavailable, errs.StepSignIn, "", "timed out after 200ms"},
		{"silent at TLS", []func(*memberapi.Source){with("port", portOf(silent)), with("connectTimeout", "200ms"), with("tls", "require")},
			errs.Unavailable, errs.StepTLS, "", "timed out after 200ms"},
		{"closes at sign-in", []func(*memberapi.Source){with("port", portOf(closed))},
			errs.Unavailable, errs.StepSignIn, "", "sign in to 127.0.0.1 as app: "},
		{"closes at TLS", []func(*memberapi.Source){with("port", portOf(closed)), with("tls", "require")},
			errs.Unavailable, errs.StepTLS, "", "TLS with 127.0.0.1: "},
		{"wrong password", []func(*memberapi.Source){func(src *memberapi.Source) { src.Password = "s3cret-wrong" }},
			errs.Source, errs.StepSignIn, "28P01", `password authentication failed for user "app"`},
		{"unknown user", []func(*memberapi.Source){func(src *memberapi.Source) { src.Username = "nobody" }},
			errs.Source, errs.StepSignIn, "28P01", `password authentication failed for user "nobody"`},
		{"unknown database", []func(*memberapi.Source){with("database", "nope")},
			errs.Source, errs.StepSignIn, "3D000", `database "nope" does not exist`},
		{"no authority", []func(*memberapi.Source){with("host", "db.example"), with("tls", "verify-full")},
			errs.Source, errs.StepTLS, "", "unknown authority"},
		{"wrong name", []func(*memberapi.Source){with("host", "db.example"), with("port", strconv.Itoa(other.Port)), with("tls", "verify-full"), with("tlsCA", other.CA)},
			errs.Source, errs.StepTLS, "", "other.example, not db.example"},
		{"wrong authority, verify-ca", []func(*memberapi.Source){with("tls", "verify-ca"), with("tlsCA", other.CA)},
			errs.Source, errs.StepTLS, "", "unknown authority"},
		{"bad option", []func(*memberapi.Source){with("options", "-c nonsense=1")},
			errs.Source, errs.StepSignIn, "42704", "nonsense"},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := openSource(t, s, c.edit...)
			e := queryErr(t, db, "select 1")
			if e.Class != c.class || e.Step != c.step || e.SQLState != c.state || !strings.Contains(e.Message, c.message) || e.Object != "DataSource/test" {
				t.Errorf("%+v", e)
			}
			if want := map[string]string{"28P01": "credentials", "3D000": "parameter database"}[c.state]; !strings.Contains(e.Hint, want) {
				t.Errorf("the hint is %q, want it to name the %s", e.Hint, want)
			}
			var failed string
			err := db.Test(testContext(t), func(name string, _ time.Duration, _ string) { failed = name })
			if te := errs.As(err); te.Step != c.step || !strings.Contains(te.Message, c.message) || failed == c.step {
				t.Errorf("Test: %+v after %s", te, failed)
			}
			for chain := error(e); chain != nil; chain = errors.Unwrap(chain) {
				if text := fmt.Sprintf("%+v %#v %v", chain, chain, chain); strings.Contains(text, "app-secret") || strings.Contains(text, "s3cret") {
					t.Errorf("the password is in the error: %s", text)
				}
			}
		})
	}
}

// What others hold up must end in time, and say what it was.
func TestDialLimits(t *testing.T) {
	t.Parallel()
	s := testpg.Start(t, testpg.WithSetting("max_connections", "4"),
		testpg.WithSetting("superuser_reserved_connections", "1"), testpg.WithSetting("max_wal_senders", "0"))
	silent := listenLocal(t)
	t.Run("too many connections", func(t *testing.T) {
		db := openSource(t, s)
		for range 3 {
			r, _, err := newStatement(t, db, "select i from generate_series(1, 10000000) i").ExecuteQuery(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Release()
		}
		if e := queryErr(t, db, "select 1"); e.SQLState != "53300" || e.Step != errs.StepSignIn {
			t.Errorf("%+v", e)
		}
	})
	t.Run("caller's deadline", func(t *testing.T) {
		db := openSource(t, s, with("port", portOf(silent)))
		ctx, cancel := contextFor(t, 100*time.Millisecond)
		defer cancel()
		_, _, err := collect(ctx, newStatement(t, db, "select 1"))
		if e := errs.As(err); e.Class != errs.Timeout || e.Step != errs.StepSignIn {
			t.Errorf("%+v", e)
		}
	})
}

func TestTLSModes(t *testing.T) {
	t.Parallel()
	s := testpg.Start(t, testpg.WithTLS("db.example"), testpg.WithHBA("hostnossl all all 0.0.0.0/0 reject"))
	for _, c := range []struct {
		mode string
		edit []func(*memberapi.Source)
	}{
		{"require", nil},
		{"verify-ca", []func(*memberapi.Source){with("tlsCA", s.CA)}},
		{"verify-full", []func(*memberapi.Source){with("tlsCA", s.CA), with("host", "db.example")}},
	} {
		db := openSource(t, s, append(c.edit, with("tls", c.mode))...)
		if got := queryValue(t, db, "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()"); got != "true" {
			t.Errorf("%s: ssl is %s", c.mode, got)
		}
		var steps []string
		err := db.Test(testContext(t), func(name string, _ time.Duration, detail string) { steps = append(steps, name+": "+detail) })
		if err != nil || len(steps) != 5 || !strings.HasPrefix(steps[2], "tls: TLS 1.3, CN=testpg server") || !strings.HasPrefix(steps[4], "execute: PostgreSQL 15") {
			t.Errorf("%s: %v %v", c.mode, steps, err)
		}
	}
	// Cancelling goes over TLS too: its key must not be read on the way.
	way := newRelay(t, net.JoinHostPort(s.Host, strconv.Itoa(s.Port)))
	cancelSleeping(t, s, openSource(t, s, with("tls", "require"), with("port", portOf(way))))
	way.mu.Lock()
	if len(way.codes) != 2 || way.codes[0] != 80877103 || way.codes[1] != 80877103 {
		t.Errorf("connections began with %v, want twice SSLRequest", way.codes)
	}
	way.mu.Unlock()
	plain := testpg.Shared(t)
	if e := queryErr(t, openSource(t, plain, with("tls", "require")), "select 1"); e.Step != errs.StepTLS || !strings.Contains(e.Message, "does not offer TLS") {
		t.Errorf("%+v", e)
	}
}

func TestServerErrors(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	db := openSource(t, s)
	for _, c := range []struct {
		sql, state string
		class      errs.Class
		step       string
		position   int
		message    string
		hint       string
	}{
		{"select 'grüße', nope", "42703", errs.Source, errs.StepExecute, 17, `column "nope" does not exist`, ""},
		{"selekt 1", "42601", errs.Source, errs.StepExecute, 1, "syntax error", ""},
		{"select 1; select 2", "42601", errs.Source, errs.StepExecute, 0, "multiple commands", "one statement per query"},
		{"select 1/0", "22012", errs.Source, errs.StepExecute, 0, "division by zero", ""},
		{"select 1/(90000-i) from generate_series(1,90000) i", "22012", errs.Source, errs.StepStream, 0, "division by zero", ""},
		{"select lower(1)", "42883", errs.Source, errs.StepExecute, 8, "lower(integer)", "explicit type casts"},
		{"create table x (a int)", "25006", errs.Source, errs.StepExecute, 0, "read-only", "readOnly: false"},
		{"", "", errs.Invalid, errs.StepExecute, 0, "empty", ""},
		{" -- nothing\n /* at /* all */ */ ; ", "", errs.Invalid, errs.StepExecute, 0, "empty", ""},
		{"copy (select 1) to stdout", "", errs.Invalid, errs.StepExecute, 0, "COPY", "SELECT"},
		{"/* x */ COPY t FROM STDIN", "", errs.Invalid, errs.StepExecute, 0, "COPY", "SELECT"},
		{"select $1::int", "", errs.Invalid, errs.StepExecute, 0, "takes 1 parameters, and none are bound", ""},
		{"do $$ begin raise exception using message = 'own', detail = 'why', hint = 'do'; end $$", "P0001", errs.Source, errs.StepExecute, 0, "own", "why; do"},
	} {
		e := queryErr(t, db, c.sql)
		if e.Class != c.class || e.SQLState != c.state || e.Step != c.step || e.Position != c.position ||
			!strings.Contains(e.Message, c.message) || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%s:\n%+v", c.sql, e)
		}
	}
}

// A statement without a result gives no columns and no rows.
func TestStatementWithoutResult(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	schema, recs, err := collect(testContext(t), newStatement(t, db, "do $$ begin raise notice 'ignored'; raise warning 'too'; end $$"))
	if err != nil || schema.NumFields() != 0 || countRows(recs) != 0 {
		t.Errorf("%v %v %v", schema, recs, err)
	}
	schema, recs, err = collect(testContext(t), newStatement(t, db, "select 1 as a where false"))
	if err != nil || schema.NumFields() != 1 || countRows(recs) != 0 {
		t.Errorf("%v %v %v", schema, recs, err)
	}
	_, recs, err = collect(testContext(t), newStatement(t, db, "select from generate_series(1, 3)"))
	if err != nil || countRows(recs) != 3 {
		t.Errorf("no columns: %v %v", recs, err)
	}
}

// A server that dies, or is killed, in the middle must not leave a short result.
func TestServerDiesMidResult(t *testing.T) {
	t.Parallel()
	s := testpg.Start(t)
	db := openSource(t, s)
	for _, c := range []struct {
		name string
		kill func(pid string)
	}{
		{"backend terminated", func(pid string) { s.Exec(t, "select pg_terminate_backend("+pid+")") }},
		{"server killed", func(string) { s.Stop(t) }},
	} {
		r, _, err := newStatement(t, db, "select pg_backend_pid() as pid, repeat('x', 100) as filler from generate_series(1, 5000000)").ExecuteQuery(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if !r.Next() {
			t.Fatal(r.Err())
		}
		rows := r.RecordBatch().NumRows()
		c.kill(r.RecordBatch().Column(0).ValueStr(0))
		for r.Next() {
			rows += r.RecordBatch().NumRows()
		}
		e := errs.As(r.Err())
		if e == nil || rows >= 5000000 || e.Step != errs.StepStream || e.Class != errs.Unavailable && e.SQLState != "57P01" && e.SQLState != "57P02" {
			t.Errorf("%s: %d rows, %+v", c.name, rows, e)
		}
		if e != nil && e.Class == errs.Unavailable && !strings.Contains(e.Message, "closed the connection after ") {
			t.Errorf("%s: %s", c.name, e.Message)
		}
		r.Release()
	}
}

func TestBadParameters(t *testing.T) {
	t.Parallel()
	base := memberapi.Source{Name: "x", Type: "postgres", Credential: core.CredentialBasic, Username: "u", Password: "p",
		Parameters: map[string]string{"host": "h", "database": "d"}}
	opts := connector.Options{Resolve: noNames}
	if _, err := New().Open(base, opts); err != nil {
		t.Fatal(err)
	}
	for field, edit := range map[string]func(*memberapi.Source){
		"parameters.host":           with("host", ""),
		"parameters.database":       with("database", ""),
		"parameters.port":           with("port", "70000"),
		"parameters.tls":            with("tls", "maybe"),
		"parameters.tlsCA":          with("tlsCA", "not PEM"),
		"parameters.connectTimeout": with("connectTimeout", "soon"),
		"parameters.colour":         with("colour", "red"),
		"credentials.kind":          func(s *memberapi.Source) { s.Credential = "key" },
		"credentials.username":      func(s *memberapi.Source) { s.Username = "" },
	} {
		src := base
		src.Parameters = map[string]string{"host": "h", "database": "d"}
		edit(&src)
		_, err := New().Open(src, opts)
		if e := errs.As(err); e == nil || e.Class != errs.Invalid || e.Field != field {
			t.Errorf("%s: %+v", field, e)
		}
	}
	if _, err := New().Open(base, connector.Options{}); errs.ClassOf(err) != errs.Internal {
		t.Errorf("without Resolve: %v", err)
	}
}
