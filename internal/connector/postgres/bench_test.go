package postgres

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// BenchmarkSelect1 runs a short query in four ways that take turns in rounds: for one
// user, for nobody (whose session is reset behind each query), as pgconn alone sends it,
// and as pgx does with a statement that it keeps prepared. Neither of the last two opens a
// transaction or resets anything. It reports the time of a query, and processor time in
// this process and in the server's.
func BenchmarkSelect1(b *testing.B) {
	s := testpg.Shared(b)
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, s.ConnString())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(ctx)
	shared, alone := openSource(b, s), openSource(b, s)
	ours := func(db *database, user string) func() error {
		st := newStatement(b, db, "select 1")
		st.user = user
		return func() error {
			r, _, err := st.ExecuteQuery(ctx)
			if err != nil {
				return err
			}
			defer r.Release()
			for r.Next() {
			}
			return r.Err()
		}
	}
	pooled := func(db *database) func() uint32 { return func() uint32 { return db.pool.idle[0].pg.PID() } }
	theirs := func() uint32 { return conn.PgConn().PID() }
	ways := []struct {
		name    string
		query   func() error
		backend func() uint32
	}{
		{"user", ours(shared, "a"), pooled(shared)},
		{"nobody", ours(alone, nobody), pooled(alone)},
		{"pgconn", func() error { return conn.PgConn().ExecParams(ctx, "select 1", nil, nil, nil, nil).Read().Err }, theirs},
		{"pgx", func() error { var n int32; return conn.QueryRow(ctx, "select 1").Scan(&n) }, theirs},
	}
	const perRound = 100
	took, cpu, server := make([][]time.Duration, len(ways)), make([]time.Duration, len(ways)), make([]time.Duration, len(ways))
	round := func(i int) {
		used, there := cpuTime(), cpuTimeOf(b, ways[i].backend())
		for range perRound {
			start := time.Now()
			if err := ways[i].query(); err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], time.Since(start))
		}
		cpu[i] += cpuTime() - used
		server[i] += cpuTimeOf(b, ways[i].backend()) - there
	}
	for _, w := range ways {
		if err := w.query(); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		for i := range ways {
			round(i)
		}
	}
	for i, w := range ways {
		n := float64(len(took[i]))
		slices.Sort(took[i])
		b.ReportMetric(float64(took[i][len(took[i])/2].Microseconds()), w.name+"-p50-µs")
		b.ReportMetric(float64(cpu[i].Microseconds())/n, w.name+"-cpu-µs")
		b.ReportMetric(float64(server[i].Microseconds())/n, w.name+"-server-µs")
	}
}

// cpuTimeOf is what the scheduler has given to another process.
func cpuTimeOf(b *testing.B, pid uint32) time.Duration {
	doc, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		b.Fatal(err)
	}
	var ns int64
	if _, err := fmt.Sscan(string(doc), &ns); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ns)
}

const lineitem = `
create table lineitem as select
	(i / 4)::int8 as l_orderkey, (i::int8 * 7919 % 200000)::int8 as l_partkey, (i::int8 * 104729 % 10000)::int8 as l_suppkey,
	(i % 7 + 1)::int4 as l_linenumber, (i % 50 + 1)::numeric(15,2) as l_quantity, (900 + i % 100000 / 7.0)::numeric(15,2) as l_extendedprice,
	(i % 11 / 100.0)::numeric(15,2) as l_discount, (i % 9 / 100.0)::numeric(15,2) as l_tax,
	substr('ANR', i % 3 + 1, 1)::char(1) as l_returnflag, substr('OF', i % 2 + 1, 1)::char(1) as l_linestatus,
	date '1992-01-01' + i % 2500 as l_shipdate, date '1992-01-01' + i % 2499 as l_commitdate, date '1992-01-01' + i % 2498 as l_receiptdate,
	(array['DELIVER IN PERSON', 'COLLECT COD', 'NONE', 'TAKE BACK RETURN'])[i % 4 + 1]::char(25) as l_shipinstruct,
	(array['REG AIR', 'AIR', 'RAIL', 'SHIP', 'TRUCK', 'MAIL', 'FOB'])[i % 7 + 1]::char(10) as l_shipmode,
	substr(md5(i::text) || md5((i + 1)::text), 1, 10 + i % 34)::varchar(44) as l_comment
from generate_series(1, 300000) i;
grant select on lineitem to app`

func cpuTime() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkLineitem reads a table of 300,000 rows and 16 columns in three ways that take
// turns: into Arrow, as a binary COPY thrown away unread (the limit), and as pgx scans rows.
func BenchmarkLineitem(b *testing.B) {
	s := testpg.Shared(b)
	s.Exec(b, lineitem)
	ctx := context.Background()
	st := newStatement(b, openSource(b, s), "select * from lineitem")
	conn, err := pgx.Connect(ctx, s.ConnString())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(ctx)
	ways := []struct {
		name string
		read func() error
	}{
		{"arrow", func() error {
			r, _, err := st.ExecuteQuery(ctx)
			if err != nil {
				return err
			}
			defer r.Release()
			for r.Next() {
			}
			return r.Err()
		}},
		{"copy", func() error {
			_, err := conn.PgConn().CopyTo(ctx, io.Discard, "copy lineitem to stdout (format binary)")
			return err
		}},
		{"pgx", func() error {
			rows, err := conn.Query(ctx, "select * from lineitem")
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				if _, err := rows.Values(); err != nil {
					return err
				}
			}
			return rows.Err()
		}},
	}
	wall, cpu := make([]time.Duration, len(ways)), make([]time.Duration, len(ways))
	n := 0
	for b.Loop() {
		n++
		for i, w := range ways {
			start, used := time.Now(), cpuTime()
			if err := w.read(); err != nil {
				b.Fatal(err)
			}
			wall[i] += time.Since(start)
			cpu[i] += cpuTime() - used
		}
	}
	for i, w := range ways {
		b.ReportMetric(float64(wall[i].Milliseconds())/float64(n), w.name+"-wall-ms")
		b.ReportMetric(float64(cpu[i].Milliseconds())/float64(n), w.name+"-cpu-ms")
	}
}
