package postgres

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/testpg"
)

const stillActive = "select count(*) from pg_stat_activity where datname = current_database() and usename = 'app' and state = 'active'"

// waitFor polls a number that the server must come to.
func waitFor(t *testing.T, s *testpg.Server, sql, want string) {
	t.Helper()
	var got string
	for range 1200 {
		if got = s.Value(t, sql); got == want {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Errorf("%s gives %s, want %s", sql, got, want)
}

// cancelSleeping cancels a query that sends nothing, so that only a cancel request ends it.
func cancelSleeping(t *testing.T, s *testpg.Server, db *database) {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	failed := make(chan error, 1)
	go func() {
		_, _, err := collect(ctx, newStatement(t, db, "select pg_sleep(50)"))
		failed <- err
	}()
	waitFor(t, s, stillActive, "1")
	cancel()
	select {
	case err := <-failed:
		if e := errs.As(err); e.Class != errs.Cancelled || e.Step != errs.StepExecute || !errors.Is(err, context.Canceled) {
			t.Errorf("%+v", e)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the query outlives its context")
	}
	waitFor(t, s, stillActive, "0")
}

func TestCancelEndsTheQueryInTheServer(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	db := openSource(t, s)
	cancelSleeping(t, s, db)
	if got := queryValue(t, db, "select 1"); got != "1" {
		t.Error(got)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	db := openSource(t, s)
	if _, _, err := collect(testContext(t), newStatement(t, db, "select 1")); err != nil {
		t.Fatal(err) // there is a connection: the deadline is the statement's
	}
	ctx, cancel := contextFor(t, time.Second)
	defer cancel()
	_, _, err := collect(ctx, newStatement(t, db, "select pg_sleep(50)"))
	if e := errs.As(err); e.Class != errs.Timeout || e.Step != errs.StepExecute {
		t.Errorf("%+v", e)
	}
	waitFor(t, s, stillActive, "0")
}

// Cancelling, or letting go, in the middle of a result ends it in the server too.
func TestCancelMidResult(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	db := openSource(t, s)
	const sql = "select generate_series(1, 100000000), repeat('x', 200)" // made as it is read
	for _, release := range []bool{false, true} {
		ctx, cancel := context.WithCancel(testContext(t))
		r, _, err := newStatement(t, db, sql).ExecuteQuery(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !r.Next() {
			t.Fatal(r.Err())
		}
		time.Sleep(200 * time.Millisecond) // the decoder is as far ahead as it may be, and waits
		if release {
			r.Release()
		} else {
			cancel()
			for r.Next() {
			}
			if errs.ClassOf(r.Err()) != errs.Cancelled {
				t.Errorf("%v", r.Err())
			}
			r.Release()
		}
		cancel()
		waitFor(t, s, stillActive, "0")
	}
	// A context that ends after the result is no matter.
	ctx, cancel := context.WithCancel(testContext(t))
	if _, _, err := collect(ctx, newStatement(t, db, "select 1")); err != nil {
		t.Fatal(err)
	}
	cancel()
	pid := queryValue(t, db, "select pg_backend_pid()")
	ctx, cancel = context.WithCancel(testContext(t))
	_, _, _ = collect(ctx, newStatement(t, db, "select 1"))
	cancel()
	if now := queryValue(t, db, "select pg_backend_pid()"); now != pid {
		t.Error("a context that ended after its query cost the connection")
	}
}

// Back-pressure: without a reader, the server waits and memory stays where it is.
func TestMemoryIsFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 1.5 million rows")
	}
	s := testpg.Shared(t)
	db := openSource(t, s)
	peak := func(rows string) uint64 {
		runtime.GC()
		r, _, err := newStatement(t, db, "select i, i::text as t, repeat('x', 100) as filler from generate_series(1, "+rows+") i").ExecuteQuery(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Release()
		var top, n uint64
		for r.Next() {
			if n++; n%16 == 0 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				top = max(top, m.HeapAlloc)
			}
		}
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		return top
	}
	small, large := peak("300000"), peak("1500000")
	t.Logf("live heap at most %d KiB for 300 k rows, %d KiB for 1.5 million", small>>10, large>>10)
	if large > small+small/5+2<<20 {
		t.Errorf("live heap grows from %d to %d KiB", small>>10, large>>10)
	}
}

// No goroutine outlives its database.
func TestNoGoroutineLeaks(t *testing.T) {
	s := testpg.Shared(t)
	before := runtime.NumGoroutine()
	db := openSource(t, s)
	for range 5 {
		r, _, err := newStatement(t, db, "select i from generate_series(1, 1000000) i").ExecuteQuery(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		r.Next()
		r.Release()
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	buf := make([]byte, 1<<16)
	t.Errorf("%d goroutines, before %d\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
}
