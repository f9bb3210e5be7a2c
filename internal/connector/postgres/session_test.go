package postgres

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/testpg"
)

// runAny runs a statement whatever comes of it.
func runAny(t *testing.T, db *database, sql string) error {
	t.Helper()
	return runAs(t, db, nobody, sql)
}

func runAs(t *testing.T, db *database, user, sql string) error {
	t.Helper()
	st := newStatement(t, db, sql)
	st.user = user
	_, _, err := collect(testContext(t), st)
	return err
}

const victim = `
create table victim (a int);
grant all on victim to app;
create function write_it() returns int language plpgsql volatile as $$ begin insert into victim values (1); return 1; end $$;
create function turn_and_write() returns int language plpgsql volatile as $$
begin perform set_config('transaction_read_only', 'off', false); insert into victim values (2); return 1; end $$;
create function default_off() returns int language plpgsql volatile as $$
begin perform set_config('default_transaction_read_only', 'off', false); return 1; end $$;
create procedure commit_and_write() language plpgsql as $$ begin commit; set transaction read write; insert into victim values (3); commit; end $$;
create sequence seq;
grant all on sequence seq to app;
grant create on schema public to app;
`

// A read-only source must refuse to write, by whatever trick.
func TestReadOnlyRefusesWrites(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, victim)
	db := openSource(t, s)
	tricks := []string{
		"insert into victim values (0)", "update victim set a = 1", "delete from victim", "truncate victim",
		"create table made (a int)", "create temp table made (a int)", "drop table victim",
		"select write_it()", "select turn_and_write()", "select nextval('seq')",
		"with x as (insert into victim values (4) returning a) select * from x",
		"select set_config('transaction_read_only', 'off', true), write_it()",
		"select set_config('transaction_read_only', 'off', false) || write_it()",
		"do $$ begin insert into victim values (5); end $$",
		"do $$ begin commit; set transaction read write; insert into victim values (6); commit; end $$",
		"do $$ begin rollback; insert into victim values (7); end $$",
		"do $$ begin set transaction read write; insert into victim values (8); end $$",
		"call commit_and_write()",
		"commit; insert into victim values (9)", "rollback; begin; insert into victim values (9)",
		"explain analyze insert into victim values (10)",
		"copy victim from stdin", "copy (select 1) to '/tmp/x'",
		"select * into made from victim", "create materialized view made as select 1",
		"vacuum victim",
	}
	for _, user := range []string{nobody, "a"} {
		for _, sql := range tricks {
			if err := runAs(t, db, user, sql); err == nil {
				t.Errorf("accepted: %s", sql)
			}
		}
		// These may succeed, and must not open the door for what comes after.
		openers := []string{
			"set transaction read write", "set session characteristics as transaction read write",
			"set default_transaction_read_only to off", "select default_off()", "commit", "rollback", "end",
			"commit and chain", "rollback and chain", "abort", "begin", "start transaction read write",
			"begin read write", "savepoint a", "set role app", "reset all", "discard all", "deallocate all",
			"select lo_create(0)", // the server allows it: only the rollback undoes it
		}
		for _, sql := range openers {
			_ = runAs(t, db, user, sql)
			for _, write := range []string{"insert into victim values (11)", "select turn_and_write()"} {
				if err := runAs(t, db, user, write); err == nil {
					t.Errorf("accepted after %q: %s", sql, write)
				}
			}
		}
	}
	if got := s.Value(t, "select count(*) from victim"); got != "0" {
		t.Errorf("%s rows were written", got)
	}
	if got := s.Value(t, "select count(*) from pg_class where relname = 'made'"); got != "0" {
		t.Error("a table was made")
	}
	if got := s.Value(t, "select count(*) from pg_largeobject_metadata"); got != "0" {
		t.Error("a large object was made")
	}
}

// What one query does to its session must not be seen by the next, on either kind of source.
func TestSessionDoesNotLeak(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, "grant create on schema public to app; create sequence seq; grant all on sequence seq to app")
	probes := []struct{ leave, look, want string }{
		{"set work_mem to '99MB'", "show work_mem", "4MB"},
		{"set timezone to 'Asia/Tokyo'", "show timezone", "UTC"},
		{"select set_config('search_path', 'evil', false)", "show search_path", `"$user", public`},
		{"set session characteristics as transaction isolation level serializable", "show transaction_isolation", "read committed"},
		{"select pg_advisory_lock(4711)", "select count(*)::int from pg_locks where locktype = 'advisory' and objid = 4711", "0"},
		{"prepare leaked as select 1", "select count(*)::int from pg_prepared_statements", "0"},
		{"do $$ begin execute 'prepare leaked2 as select 1'; end $$", "select count(*)::int from pg_prepared_statements", "0"},
		{"listen leaked", "select count(*)::int from pg_listening_channels()", "0"},
		{"create temp table leaked as select 1", "select count(*)::int from pg_class where relname = 'leaked'", "0"},
		{"declare leaked cursor with hold for select 1", "select count(*)::int from pg_cursors where name = 'leaked'", "0"},
		{"begin", "select (xact_start < query_start)::text from pg_stat_activity where pid = pg_backend_pid() and state = 'idle in transaction'", ""},
		{"set role pg_monitor", "select current_user::text", "app"},
		{"select setseed(0.5)", "select (random() between 0.2499 and 0.2500)::text || random()", ""},
	}
	for _, c := range []struct {
		readOnly    bool
		first, next string // users
	}{{true, nobody, nobody}, {false, nobody, nobody}, {true, "a", "b"}, {false, "a", "a"}} {
		t.Run(fmt.Sprintf("readOnly=%t,%s,%s", c.readOnly, c.first, c.next), func(t *testing.T) {
			db := openSource(t, s, func(src *memberapi.Source) { src.ReadOnly = c.readOnly })
			var backend string
			for _, p := range probes {
				backend = valueAs(t, db, c.first, "select pg_backend_pid()")
				_ = runAs(t, db, c.first, p.leave)
				if p.want == "" {
					continue
				}
				if got := valueAs(t, db, c.next, p.look); got != p.want {
					t.Errorf("after %q: %s = %s, want %s", p.leave, p.look, got, p.want)
				}
				if now := valueAs(t, db, c.next, "select pg_backend_pid()"); now != backend {
					t.Errorf("after %q: the connection was not reused, so nothing was shown", p.leave)
				}
			}
			first := queryValue(t, db, "select random()")
			if err := runAny(t, db, "select setseed(0.25)"); err != nil {
				t.Fatal(err)
			}
			again := queryValue(t, db, "select random()")
			_ = runAny(t, db, "select setseed(0.25)")
			if again == queryValue(t, db, "select random()") || again == first {
				t.Error("setseed leaks into the next query")
			}
		})
	}
}

// A repeated query takes one write and one connection, and no more.
func TestRepeatedQueryUsesOneConnection(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	db := openSource(t, s)
	pid := queryValue(t, db, "select pg_backend_pid()")
	for range 20 {
		if got := queryValue(t, db, "select pg_backend_pid()"); got != pid {
			t.Fatalf("another connection: %s, %s", got, pid)
		}
	}
}

// When a table changes under a cached description, the query just works.
func TestSchemaChange(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, "create table changing (a int); insert into changing values (1); grant select on changing to app")
	db := openSource(t, s)
	const sql = "select * from changing"
	for range 2 {
		if got := queryValue(t, db, sql); got != "1" {
			t.Fatal(got)
		}
	}
	s.Exec(t, "alter table changing alter a type int4range using int4range(a, a + 1)")
	if got := queryValue(t, db, sql); got != "[1,2)" {
		t.Errorf("after the change of type: %s", got)
	}
	s.Exec(t, "alter table changing add b text default 'x'")
	if got := queryRows(t, db, sql); len(got) != 1 || len(got[0]) != 2 || got[0][1] != "x" {
		t.Errorf("after the new column: %v", got)
	}
	s.Exec(t, "drop table changing")
	if e := queryErr(t, db, sql); e.SQLState != "42P01" {
		t.Errorf("after the drop: %+v", e)
	}
}

func TestWritableSource(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, "grant create on schema public to app")
	db := openSource(t, s, writable)
	ctx := testContext(t)
	update := func(sql string) int64 {
		t.Helper()
		n, err := newStatement(t, db, sql).ExecuteUpdate(ctx)
		if err != nil {
			t.Fatalf("%v in %s", err, sql)
		}
		return n
	}
	if n := update("create table w (a int primary key, b int references w deferrable initially deferred)"); n != -1 {
		t.Errorf("create: %d rows", n)
	}
	if n := update("insert into w select i, i from generate_series(1, 5) i"); n != 5 {
		t.Errorf("insert: %d rows", n)
	}
	if n := update("update w set b = null where a > 3"); n != 2 {
		t.Errorf("update: %d rows", n)
	}
	if got := queryRows(t, db, "insert into w values (6) returning a, b"); got[0][0] != "6" {
		t.Errorf("returning: %v", got)
	}
	// The constraint fails at the commit, after the rows: the end must tell.
	if e := queryErr(t, db, "insert into w values (7, 1234) returning a"); e.SQLState != "23503" {
		t.Errorf("deferred constraint: %+v", e)
	}
	if e := queryErr(t, db, "insert into w select i from generate_series(10, 11) i union all select 1"); e.SQLState != "23505" || !strings.Contains(e.Hint, "Key (a)=(1)") {
		t.Errorf("unique: %+v", e)
	}
	update("vacuum w") // not possible inside an explicit transaction
	if got := s.Value(t, "select count(*) from w"); got != "6" {
		t.Errorf("%s rows", got)
	}
}

// The server ends idle connections when it restarts; a query then just takes a new one.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	s := testpg.Start(t)
	db := openSource(t, s)
	for _, next := range []string{nobody, "a", "b"} {
		stopSweeping(db)
		valueAs(t, db, "a", "select 1") // leaves a past
		s.Restart(t)
		for range 2 {
			if got := valueAs(t, db, next, "select 1"); got != "1" {
				t.Fatal(got)
			}
		}
	}
	s.Stop(t)
	if e := queryErr(t, db, "select 1"); e.Class != errs.Unavailable || e.Step != errs.StepConnect {
		t.Errorf("%+v", e)
	}
}

func TestPoolBound(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	src := sourceOf(s)
	opened, err := New().Open(src, connector.Options{Resolve: noNames, MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	db := opened.(*database)
	defer db.Close()
	done := make(chan error, 6)
	for range 6 {
		go func() {
			_, _, err := collect(testContext(t), newStatement(t, db, "select pg_sleep(0.2)"))
			done <- err
		}()
	}
	most := "0"
	for left := 6; left > 0; {
		select {
		case err := <-done:
			left--
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Millisecond):
			got := s.Value(t, "select count(*) from pg_stat_activity where datname = current_database() and usename = 'app'")
			most = max(most, got)
		}
	}
	if most != "2" {
		t.Errorf("at most %s connections, want 2", most)
	}
}

func TestPoolWaitIsBounded(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	opened, err := New().Open(sourceOf(s), connector.Options{Resolve: noNames, MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	db := opened.(*database)
	r, _, err := newStatement(t, db, "select i from generate_series(1, 10000000) i").ExecuteQuery(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := contextFor(t, 50*time.Millisecond)
	defer cancel()
	_, _, err = collect(ctx, newStatement(t, db, "select 1"))
	if e := errs.As(err); e.Class != errs.Timeout || e.Step != errs.StepConnect || !strings.Contains(e.Hint, "all 1 connections") {
		t.Errorf("%+v", e)
	}
	// Close ends what runs, and Next says so.
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	for r.Next() {
	}
	if errs.ClassOf(r.Err()) != errs.Cancelled {
		t.Errorf("after Close: %v", r.Err())
	}
	r.Release()
	if _, _, err := collect(testContext(t), newStatement(t, db, "select 1")); errs.ClassOf(err) != errs.Unavailable {
		t.Errorf("a closed database: %v", err)
	}
}

// An idle connection goes after its time.
func TestIdleConnectionsAreReaped(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	queryValue(t, db, "select 1")
	db.pool.mu.Lock()
	c := db.pool.idle[0]
	c.idleSince = time.Now().Add(-idleTimeout - time.Second)
	db.pool.mu.Unlock()
	db.pool.reap()
	if !c.pg.IsClosed() || len(db.pool.idle) != 0 || db.pool.reaper != nil {
		t.Error("an idle connection was kept")
	}
}
