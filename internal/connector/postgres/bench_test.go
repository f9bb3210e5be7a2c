package postgres

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// BenchmarkSelect1 compares a repeated short query with pgx's own, which keeps a
// prepared statement in the session, opens no transaction and resets nothing. The two
// take turns, with a pause as there is between the queries of one client, so that
// a busy machine is equally unkind to both.
func BenchmarkSelect1(b *testing.B) {
	s := testpg.Shared(b)
	ctx := context.Background()
	st := newStatement(b, openSource(b, s), "select 1")
	conn, err := pgx.Connect(ctx, s.ConnString())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(ctx)
	ours, theirs := make([]time.Duration, 0, b.N), make([]time.Duration, 0, b.N)
	for b.Loop() {
		time.Sleep(300 * time.Microsecond)
		start := time.Now()
		r, _, err := st.ExecuteQuery(ctx)
		if err != nil || !r.Next() || r.Next() || r.Err() != nil {
			b.Fatal(err, r)
		}
		ours = append(ours, time.Since(start))
		r.Release()
		time.Sleep(300 * time.Microsecond)
		start = time.Now()
		var n int32
		if err := conn.QueryRow(ctx, "select 1").Scan(&n); err != nil {
			b.Fatal(err)
		}
		theirs = append(theirs, time.Since(start))
	}
	report := func(name string, d []time.Duration) {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds()), name+"-p50-µs")
		b.ReportMetric(float64(d[len(d)*95/100].Microseconds()), name+"-p95-µs")
	}
	report("sluice", ours)
	report("pgx", theirs)
}
