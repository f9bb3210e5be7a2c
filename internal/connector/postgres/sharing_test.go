package postgres

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// hidden leaves an advisory lock and a prepared statement in the session without its
// text saying so.
const hidden = `
create function leave() returns int language plpgsql as $$
begin
	perform pg_advisory_lock(4712);
	execute 'prepare leaked as select 1';
	perform set_config('work_mem', '99MB', false);
	return 1;
end $$;
create function count_statements() returns int language sql as 'select count(*)::int from pg_prepared_statements';
create function count_locks() returns int language sql as
	$$ select count(*)::int from pg_locks where locktype = 'advisory' and objid = 4712 and pid = pg_backend_pid() $$;
create function fail() returns int language plpgsql as $$ begin raise exception 'on purpose'; end $$;
`

// What is looked at, and what is seen in a session without a past.
var lookedAt = []struct{ sql, want string }{
	{"select count_statements()", "0"}, // in words that do not have the session reset
	{"select count_locks()", "0"},
	{"show work_mem", "4MB"},
}

func valueAs(t *testing.T, db *database, user, sql string) string {
	t.Helper()
	st := newStatement(t, db, sql)
	st.user = user
	schema, recs, err := collect(testContext(t), st)
	if err != nil {
		t.Fatalf("%v in %s as %q", err, sql, user)
	}
	return formatRows(t, schema, recs)[0][0]
}

// stopSweeping keeps idle connections as they are.
func stopSweeping(db *database) {
	db.pool.mu.Lock()
	defer db.pool.mu.Unlock()
	db.pool.sweeping = true
	db.pool.sweeper.Stop()
}

func hasPast(db *database) bool {
	db.pool.mu.Lock()
	defer db.pool.mu.Unlock()
	return len(db.pool.idle) > 0 && !db.pool.idle[0].past.IsZero()
}

func setPast(db *database, age time.Duration) {
	db.pool.mu.Lock()
	defer db.pool.mu.Unlock()
	db.pool.idle[0].past = time.Now().Add(-age)
}

// Whoever comes next on a connection, other than its last user, finds nothing of his.
func TestPastIsNotSeenByOthers(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, hidden)
	for _, next := range []string{"b", nobody} {
		for _, look := range lookedAt {
			db := openSource(t, s)
			stopSweeping(db)
			pid := valueAs(t, db, "a", "select pg_backend_pid()")
			for _, known := range []bool{false, true} { // the statement's description
				valueAs(t, db, "a", "select leave()")
				if !hasPast(db) {
					t.Fatal("the session was reset, so nothing is shown")
				}
				if got := valueAs(t, db, next, look.sql); got != look.want {
					t.Errorf("as %q, known %t: %s gives %s", next, known, look.sql, got)
				}
				if now := valueAs(t, db, next, "select pg_backend_pid()"); now != pid {
					t.Error("another connection served, so nothing is shown")
				}
			}
		}
	}
}

// Describing a statement must not tell of another user's either.
func TestPastIsNotDescribedToOthers(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, hidden)
	db := openSource(t, s)
	stopSweeping(db)
	valueAs(t, db, "a", "select leave()")
	st := newStatement(t, db, "execute leaked")
	st.user = "b"
	if err := st.Prepare(testContext(t)); err != nil {
		t.Fatal(err) // the server prepares it whether or not there is such a statement
	}
	if st.desc.schema.NumFields() != 0 {
		t.Error("another user's prepared statement was described")
	}
}

// The same user's queries follow each other without a reset, for a moment.
func TestPastIsKeptForItsUser(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, hidden)
	db := openSource(t, s)
	stopSweeping(db)
	for i, want := range []string{"1", "1", "4MB"} { // settings are rolled back
		look := lookedAt[i]
		valueAs(t, db, "a", "select 1")
		setPast(db, -time.Hour) // as if it were younger than it is, however slow this machine
		valueAs(t, db, "a", "select leave()")
		if got := valueAs(t, db, "a", look.sql); got != want {
			t.Errorf("%s gives %s, want %s", look.sql, got, want)
		}
		setPast(db, maxPast)
		if got := valueAs(t, db, "a", look.sql); got != look.want {
			t.Errorf("%s gives %s after the time that a past is kept", look.sql, got)
		}
	}
}

// An idle connection loses its past by itself.
func TestIdlePastIsDiscarded(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, hidden)
	db := openSource(t, s)
	valueAs(t, db, "a", "select 1")
	for range 2 { // the timer runs again
		valueAs(t, db, "a", "select leave()")
		waitFor(t, s, "select count(*) from pg_locks where locktype = 'advisory' and objid = 4712 and database = (select oid from pg_database where datname = current_database())", "0")
		for _, look := range lookedAt {
			if got := valueAs(t, db, "a", look.sql); got != look.want {
				t.Errorf("%s gives %s", look.sql, got)
			}
		}
	}
}

// A query that fails after it left something: its transaction is ended, the connection
// serves on, and nothing stays, even for its user.
func TestFailedQueryLeavesNothing(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, hidden)
	db := openSource(t, s)
	stopSweeping(db)
	pid := valueAs(t, db, "a", "select pg_backend_pid()")
	for range 2 {
		for _, sql := range []string{"select leave(), fail()", "select no_such_column", "select i / (50000 - i) from generate_series(1, 60000) i"} {
			st := newStatement(t, db, sql)
			st.user = "a"
			if _, _, err := collect(testContext(t), st); err == nil {
				t.Fatal("no error")
			}
			if got := s.Value(t, "select state from pg_stat_activity where pid = "+pid); got != "idle" {
				waitFor(t, s, "select state from pg_stat_activity where pid = "+pid, "idle")
			}
			for _, look := range lookedAt {
				if got := valueAs(t, db, "a", look.sql); got != look.want {
					t.Errorf("after %q: %s gives %s", sql, look.sql, got)
				}
			}
		}
	}
	if now := valueAs(t, db, "a", "select pg_backend_pid()"); now != pid {
		t.Error("a failed query cost the connection")
	}
}

// What says that it leaves something is undone at once.
func TestLingeringStatementsAreReset(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	stopSweeping(db)
	for _, sql := range []string{"prepare leaked as select 1", "select pg_advisory_lock(4712)::text"} {
		st := newStatement(t, db, sql)
		st.user = "a"
		if _, _, err := collect(testContext(t), st); err != nil {
			t.Fatal(err)
		}
		if hasPast(db) {
			t.Errorf("%s leaves a past", sql)
		}
	}
}

// A user gets the connection back that has his own past, or one without any.
func TestPoolPrefersWhatSuits(t *testing.T) {
	t.Parallel()
	now := time.Now()
	own, clean := &conn{past: now, user: "a"}, &conn{}
	theirs, old := &conn{past: now, user: "b"}, &conn{past: now.Add(-maxPast), user: "a"}
	for _, c := range []struct {
		user string
		idle []*conn
		want *conn
	}{
		{"a", []*conn{own, theirs, old}, own},
		{"a", []*conn{clean, theirs}, clean},
		{"a", []*conn{theirs, old}, old},
		{nobody, []*conn{clean, own, theirs}, clean},
		{nobody, []*conn{own, theirs}, theirs},
		{"c", nil, nil},
	} {
		p := &pool{idle: c.idle}
		if got := p.pop(c.user, now); got != c.want {
			t.Errorf("user %q of %v: %v", c.user, c.idle, got)
		}
	}
}

// A connection that the server ended a moment ago is replaced by another, whoever is next.
func TestEndedSessionIsReplaced(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	db := openSource(t, s)
	for i, next := range []string{"a", "b", nobody, "b"} {
		for _, sql := range []string{"select 1", fmt.Sprintf("select 1 + %d - %d", i, i)} { // described, and not
			stopSweeping(db)
			pid := valueAs(t, db, "a", "select pg_backend_pid()")
			valueAs(t, db, "a", "select 1")
			s.Exec(t, "select pg_terminate_backend("+pid+")")
			waitFor(t, s, "select count(*) from pg_stat_activity where pid = "+pid, "0")
			db.pool.mu.Lock()
			db.pool.idle[0].idleSince = time.Now() // too lately to be looked at
			db.pool.mu.Unlock()
			if got := valueAs(t, db, next, sql); got != "1" {
				t.Error(got)
			}
		}
	}
}
