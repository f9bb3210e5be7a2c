package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
)

// The ways of fetching the whole table.
const (
	byFlight = "Flight SQL"
	byHTTP   = "HTTP Arrow stream"
	byPsql   = `psql \copy binary`
	byPgx    = "pgx row scan"
)

const wholeTable = "select * from lineitem"

// bulk moves the whole table to a client, and counts every process that takes part.
func bulk(ctx context.Context, e *env) (*result, error) {
	if err := e.lineitem(ctx); err != nil {
		return nil, err
	}
	if err := e.gateway(ctx, "wake"); err != nil {
		return nil, err
	}
	b := &bulkRun{env: e}
	ways := []way{{byFlight, b.flight}, {byPsql, b.psql}, {byHTTP, b.http}, {byPgx, b.pgx}}
	if err := alternate(ctx, 1, ways); err != nil { // warms caches and pools
		return nil, err
	}
	b.samples = samples{}
	if err := alternate(ctx, e.scale.BulkRuns, ways); err != nil {
		return nil, err
	}
	return &result{Rows: b.rows(), Samples: b.samples.list}, nil
}

type bulkRun struct {
	env     *env
	samples samples
}

func (b *bulkRun) flight(ctx context.Context) error {
	return b.sample(byFlight, func() (ran, error) {
		return runClientProcess(ctx, "flight", job{Address: b.env.stack.Flight, Token: b.env.stack.Token(), SQL: wholeTable})
	})
}

func (b *bulkRun) http(ctx context.Context) error {
	return b.sample(byHTTP, func() (ran, error) {
		return runClientProcess(ctx, "http", job{Address: "http://" + b.env.stack.HTTP, Token: b.env.stack.Token(), SQL: wholeTable})
	})
}

func (b *bulkRun) pgx(ctx context.Context) error {
	return b.sample(byPgx, func() (ran, error) {
		return runClientProcess(ctx, "pgx", job{Address: b.env.pg.ConnString(), SQL: wholeTable})
	})
}

var copied = regexp.MustCompile(`COPY (\d+)`)

func (b *bulkRun) psql(ctx context.Context) error {
	pg := b.env.pg
	return b.sample(byPsql, func() (ran, error) {
		env := []string{"PGPASSWORD=" + pg.Password, "PGSSLMODE=disable"}
		r, out, err := timed(ctx, nil, env, "psql", "-X", "-h", pg.Host, "-p", strconv.Itoa(pg.Port), "-U", pg.User, "-d", pg.Database,
			"-c", `\copy (`+wholeTable+`) to '/dev/null' with (format binary)`)
		if err != nil {
			return r, err
		}
		if m := copied.FindSubmatch(out); m != nil {
			r.got.Rows, err = strconv.ParseInt(string(m[1]), 10, 64)
		}
		return r, err
	})
}

// sample runs one way once and keeps what it took, process by process.
func (b *bulkRun) sample(name string, fetch func() (ran, error)) error {
	m, err := b.env.member()
	if err != nil {
		return err
	}
	procs := meter{"postgres": b.env.postmaster, "member": m.pid, "service and host": b.env.sluice}
	before, err := procs.read()
	if err != nil {
		return err
	}
	r, err := fetch()
	if err != nil {
		return err
	}
	used, err := procs.since(before)
	if err != nil {
		return err
	}
	if r.got.Rows != int64(b.env.rows) {
		return fmt.Errorf("%d rows came, want %d", r.got.Rows, b.env.rows)
	}
	used["client"] = r.cpu
	b.samples.add(name+": rate", "krows/s", float64(r.got.Rows)/r.wall/1000)
	b.samples.add(name+": wall", "s", r.wall)
	b.samples.add(name+": Arrow", "MB", float64(r.got.Bytes)/1e6)
	for _, p := range []string{"client", "member", "service and host", "postgres"} {
		b.samples.add(name+": CPU "+p, "s", used[p])
	}
	b.samples.add(name+": CPU Sluice and client", "s", used["client"]+used["member"]+used["service and host"])
	return nil
}

func (b *bulkRun) rows() []row {
	of := b.samples.of
	runs := len(of(byFlight + ": rate"))
	rate := func(this, base string) row {
		a, z := of(this+": rate"), of(base+": rate")
		return row{Figure: "bulk: " + this + ", rate", This: quantity{Value: median(a), Unit: "krows/s"}, Runs: runs}.
			against(quantity{median(z), "krows/s", base}, ratio(a, z))
	}
	cpu := func(this string) row {
		a, z := of(this+": CPU Sluice and client"), of(byPgx+": CPU client")
		return row{Figure: "bulk: " + this + ", CPU of member, service, client", This: quantity{Value: median(a), Unit: "s"}, Runs: runs}.
			against(quantity{median(z), "s", byPgx + ", client alone"}, ratio(a, z))
	}
	first, used := rate(byFlight, byPsql), cpu(byFlight)
	out := []row{
		first.goal("≥ 0.9", *first.Ratio >= 0.9), used.goal("< 1", *used.Ratio < 1),
		rate(byFlight, byPgx), rate(byHTTP, byPsql), cpu(byHTTP),
	}
	for _, p := range []string{"member", "service and host", "client", "postgres"} {
		mine, theirs := of(byFlight+": CPU "+p), byPsql
		if p == "member" || p == "service and host" {
			out = append(out, row{Figure: "bulk: " + byFlight + ", CPU " + p, This: quantity{Value: median(mine), Unit: "s"}, Runs: runs})
			continue
		}
		base := of(theirs + ": CPU " + p)
		out = append(out, row{Figure: "bulk: " + byFlight + ", CPU " + p, This: quantity{Value: median(mine), Unit: "s"}, Runs: runs}.
			against(quantity{median(base), "s", theirs}, ratio(mine, base)))
	}
	return out
}
