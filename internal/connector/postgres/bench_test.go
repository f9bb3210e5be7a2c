package postgres

import (
	"context"
	"io"
	"slices"
	"syscall"
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
