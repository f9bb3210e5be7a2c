// Package connectortest is the suite that every connector must pass, against a real
// data source. It tests the rules of package connector; what is particular to one
// source, its types above all, is tested beside its connector. Tests of connectors
// import it, and nothing else.
package connectortest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// Harness is a data source under test, in its own words. Every field is required.
type Harness struct {
	Connector connector.Connector
	Source    memberapi.Source  // reaches the data source, read-only
	Options   connector.Options // MaxConns is set by the suite

	// Rows returns a query for n rows of two columns: the integers from 1, and a text
	// that is null in every third row.
	Rows func(n int) string
	// Hang is a query that neither ends nor sends anything for a minute.
	Hang string
	// SyntaxError and UnknownTable are queries that the source must refuse.
	SyntaxError, UnknownTable string
	// Write is a statement that a read-only source must refuse.
	Write string
	// Leave changes the session; Look then gives one value, which is Clean in a session
	// that nothing has changed.
	Leave, Look, Clean string
	// Running counts the statements of Source's user that run in the data source.
	Running func(t testing.TB) int
	// Unreachable changes a source to an address at which nothing listens, WrongPassword
	// to a credential that is refused.
	Unreachable, WrongPassword func(src *memberapi.Source)
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"Rows", testRows}, {"Empty", testEmpty}, {"Errors", testErrors}, {"DialErrors", testDialErrors},
		{"Secrets", testSecrets}, {"ReadOnly", testReadOnly}, {"Session", testSession}, {"Cancel", testCancel},
		{"Release", testRelease}, {"Concurrent", testConcurrent}, {"Memory", testMemory}, {"Close", testClose},
		{"Timed", testTimed}, {"Tester", testTester},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, h) })
	}
}

const bound = 60 * time.Second

func contextOf(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	return ctx
}

func (h Harness) open(t testing.TB, maxConns int, edit ...func(*memberapi.Source)) adbc.Database {
	t.Helper()
	src := h.Source
	src.Parameters = map[string]string{}
	maps.Copy(src.Parameters, h.Source.Parameters)
	for _, e := range edit {
		e(&src)
	}
	opts := h.Options
	opts.MaxConns = maxConns
	db, err := h.Connector.Open(src, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func statement(ctx context.Context, db adbc.Database, sql string) (adbc.Statement, error) {
	cnxn, err := db.Open(ctx)
	if err != nil {
		return nil, err
	}
	st, err := cnxn.NewStatement()
	if err != nil {
		return nil, err
	}
	return st, st.SetSqlQuery(sql)
}

func start(ctx context.Context, db adbc.Database, sql string) (array.RecordReader, error) {
	st, err := statement(ctx, db, sql)
	if err != nil {
		return nil, err
	}
	r, _, err := st.ExecuteQuery(ctx)
	return r, err
}

// each runs a query and hands over its batches.
func each(ctx context.Context, db adbc.Database, sql string, do func(arrow.RecordBatch)) error {
	r, err := start(ctx, db, sql)
	if err != nil {
		return err
	}
	defer r.Release()
	for r.Next() {
		do(r.RecordBatch())
	}
	return r.Err()
}

func testRows(t *testing.T, h Harness) {
	db := h.open(t, 4)
	for _, n := range []int{1, 2, 1000, 50_000} {
		next := 0
		err := each(contextOf(t), db, h.Rows(n), func(rec arrow.RecordBatch) {
			if rec.NumRows() == 0 || rec.NumRows() > 16<<10 {
				t.Errorf("a batch of %d rows", rec.NumRows())
			}
			for i := range int(rec.NumRows()) {
				next++
				if got := rec.Column(0).ValueStr(i); got != fmt.Sprint(next) {
					t.Fatalf("row %d of %d holds %s", next, n, got)
				}
				if rec.Column(1).IsNull(i) != (next%3 == 0) {
					t.Fatalf("row %d of %d: the null is wrong", next, n)
				}
			}
		})
		if err != nil || next != n {
			t.Errorf("%d of %d rows: %v", next, n, err)
		}
	}
}

func testEmpty(t *testing.T, h Harness) {
	r, err := start(contextOf(t), h.open(t, 1), h.Rows(0))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	if r.Schema().NumFields() != 2 || r.Next() || r.Err() != nil {
		t.Errorf("%v, %v", r.Schema(), r.Err())
	}
}

func failure(t *testing.T, err error, class errs.Class, step string) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || e.Class != class || e.Step != step || e.Message == "" {
		t.Errorf("got %T %v of class %s at step %s, want %s at %s", err, err, errs.ClassOf(err), errs.As(err).Step, class, step)
	}
}

func testErrors(t *testing.T, h Harness) {
	db := h.open(t, 2)
	ctx := contextOf(t)
	for _, sql := range []string{h.SyntaxError, h.UnknownTable} {
		failure(t, each(ctx, db, sql, func(arrow.RecordBatch) {}), errs.Source, errs.StepExecute)
	}
	failure(t, each(ctx, db, "", func(arrow.RecordBatch) {}), errs.Invalid, errs.StepExecute)
	if err := each(ctx, db, h.Rows(1), func(arrow.RecordBatch) {}); err != nil {
		t.Errorf("after errors: %v", err)
	}
}

func testDialErrors(t *testing.T, h Harness) {
	none := func(arrow.RecordBatch) {}
	failure(t, each(contextOf(t), h.open(t, 1, h.Unreachable), h.Rows(1), none), errs.Unavailable, errs.StepConnect)
	failure(t, each(contextOf(t), h.open(t, 1, h.WrongPassword), h.Rows(1), none), errs.Source, errs.StepSignIn)
}

func testSecrets(t *testing.T, h Harness) {
	const secret = "Pa55-in-the-clear"
	db := h.open(t, 1, func(src *memberapi.Source) { h.WrongPassword(src); src.Password = secret })
	err := each(contextOf(t), db, h.Rows(1), func(arrow.RecordBatch) {})
	for ; err != nil; err = errors.Unwrap(err) {
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), secret) {
			t.Errorf("the password is in %v", err)
		}
	}
}

func testReadOnly(t *testing.T, h Harness) {
	failure(t, each(contextOf(t), h.open(t, 1), h.Write, func(arrow.RecordBatch) {}), errs.Source, errs.StepExecute)
}

func testSession(t *testing.T, h Harness) {
	db := h.open(t, 1)
	for range 3 {
		_ = each(contextOf(t), db, h.Leave, func(arrow.RecordBatch) {})
		got := ""
		err := each(contextOf(t), db, h.Look, func(rec arrow.RecordBatch) { got += rec.Column(0).ValueStr(0) })
		if err != nil || got != h.Clean {
			t.Errorf("after %q, %q gives %q, want %q (%v)", h.Leave, h.Look, got, h.Clean, err)
		}
	}
}

// runningIs polls: the data source may take a moment.
func (h Harness) runningIs(t *testing.T, want int) {
	t.Helper()
	got := 0
	for range 200 {
		if got = h.Running(t); got == want {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("%d statements run in the data source, want %d", got, want)
}

func testCancel(t *testing.T, h Harness) {
	db := h.open(t, 2)
	ctx, cancel := context.WithCancel(contextOf(t))
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- each(ctx, db, h.Hang, func(arrow.RecordBatch) {}) }()
	h.runningIs(t, 1)
	cancel()
	select {
	case err := <-ended:
		failure(t, err, errs.Cancelled, errs.StepExecute)
	case <-time.After(10 * time.Second):
		t.Fatal("a cancelled query goes on for 10 s")
	}
	h.runningIs(t, 0)

	ctx, cancel = context.WithTimeout(contextOf(t), 200*time.Millisecond)
	defer cancel()
	failure(t, each(ctx, db, h.Hang, func(arrow.RecordBatch) {}), errs.Timeout, errs.StepExecute)
	h.runningIs(t, 0)
}

func testRelease(t *testing.T, h Harness) {
	db := h.open(t, 1)
	for range 3 {
		r, err := start(contextOf(t), db, h.Rows(20_000_000))
		if err != nil {
			t.Fatal(err)
		}
		if !r.Next() {
			t.Fatal(r.Err())
		}
		r.Release()
		h.runningIs(t, 0)
	}
}

func testConcurrent(t *testing.T, h Harness) {
	db := h.open(t, 3)
	ctx := contextOf(t)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 10 {
				want, got := int64(100*w+i), int64(0)
				if err := each(ctx, db, h.Rows(int(want)), func(rec arrow.RecordBatch) { got += rec.NumRows() }); err != nil || got != want {
					t.Errorf("%d of %d rows: %v", got, want, err)
				}
			}
		})
	}
	wg.Wait()
}

// testMemory reads ten times as much and compares what is live.
func testMemory(t *testing.T, h Harness) {
	if testing.Short() {
		t.Skip("reads 1.1 million rows")
	}
	db := h.open(t, 1)
	live := func(n int) (top uint64) {
		batches := 0
		err := each(contextOf(t), db, h.Rows(n), func(arrow.RecordBatch) {
			if batches++; batches%4 == 0 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				top = max(top, m.HeapAlloc)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		return top
	}
	small, large := live(100_000), live(1_000_000)
	if large > small+small/5+2<<20 {
		t.Errorf("live memory grows from %d to %d KiB with the result", small>>10, large>>10)
	}
}

func testClose(t *testing.T, h Harness) {
	before := runtime.NumGoroutine()
	db := h.open(t, 2)
	r, err := start(contextOf(t), db, h.Rows(20_000_000))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	for r.Next() {
	}
	if r.Err() == nil {
		t.Error("a result that Close cut off looks whole")
	}
	r.Release()
	h.runningIs(t, 0)
	if err := each(contextOf(t), db, h.Rows(1), func(arrow.RecordBatch) {}); err == nil {
		t.Error("a closed database runs queries")
	}
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i == 200 {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		time.Sleep(25 * time.Millisecond)
	}
}

func testTimed(t *testing.T, h Harness) {
	db := h.open(t, 1)
	for i := range 2 {
		st, err := statement(contextOf(t), db, h.Rows(1))
		if err != nil {
			t.Fatal(err)
		}
		timed, ok := st.(connector.Timed)
		if !ok {
			t.Skip("the connector does not tell times")
		}
		r, _, err := st.ExecuteQuery(contextOf(t))
		if err != nil {
			t.Fatal(err)
		}
		r.Release()
		connect, execute := timed.Timings()
		if execute <= 0 || (connect > 0) != (i == 0) {
			t.Errorf("execution %d: connect %v, execute %v", i, connect, execute)
		}
	}
}

func testTester(t *testing.T, h Harness) {
	tester, ok := h.open(t, 1).(connector.Tester)
	if !ok {
		t.Skip("the connector cannot test its steps")
	}
	var steps []string
	note := func(name string, _ time.Duration, _ string) { steps = append(steps, name) }
	if err := tester.Test(contextOf(t), note); err != nil || len(steps) < 3 || steps[len(steps)-1] != errs.StepExecute {
		t.Errorf("%v %v", steps, err)
	}
	steps = nil
	err := h.open(t, 1, h.WrongPassword).(connector.Tester).Test(contextOf(t), note)
	failure(t, err, errs.Source, errs.StepSignIn)
	if len(steps) == 0 || steps[len(steps)-1] == errs.StepSignIn {
		t.Errorf("steps before the failure: %v", steps)
	}
}
