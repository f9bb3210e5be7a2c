package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-gateway/sluice/client"
)

// The ways of asking a short query.
const (
	prepared = "Flight SQL, prepared"
	plain    = "Flight SQL"
	overHTTP = "HTTP"
	direct   = "pgx direct"
	bySSH    = "pgx by ssh -R"
	byChain  = "pgx by three processes that only copy bytes"
	anewSSH  = "pgx by ssh -R, a connection per query" // as tools do that run once
)

const shortQuery = "select 1"

// clientCounts are how many ask at once; the first is the one that "adds" is about.
func clientCounts() []int { return []int{1, 16} }

// short asks the shortest query, again and again.
func short(ctx context.Context, e *env) (*result, error) {
	if err := e.gateway(ctx, "wake"); err != nil {
		return nil, err
	}
	tunnel, err := startSSH(ctx, e.pg.Port)
	if err != nil {
		return nil, fmt.Errorf("ssh -R: %w", err)
	}
	defer tunnel.stop()
	copiers, err := startChain(ctx, e.pg.Port)
	if err != nil {
		return nil, fmt.Errorf("processes that copy: %w", err)
	}
	defer copiers.stop()
	openers := []struct {
		name string
		open opener
	}{
		{prepared, e.openPrepared}, {direct, openPgx(e.pg.ConnString())}, {plain, e.openPlain},
		{bySSH, openPgx(e.pg.ConnString() + fmt.Sprintf(" port=%d", tunnel.port))}, {overHTTP, e.openHTTP},
		{byChain, openPgx(e.pg.ConnString() + fmt.Sprintf(" port=%d", copiers.port))},
		{anewSSH, openAnew(e.pg.ConnString() + fmt.Sprintf(" port=%d", tunnel.port))},
	}
	s := &samples{}
	for _, clients := range clientCounts() {
		var ways []way
		for _, o := range openers {
			queries := e.scale.ShortQueries * min(clients, 2)
			if o.name == anewSSH {
				if clients > 1 {
					continue
				}
				queries /= 10 // each takes as long as many others
			}
			ways = append(ways, way{name: o.name, run: func(ctx context.Context) error {
				return e.shortOnce(ctx, series3(o.name, clients), o.open, clients, queries, s)
			}})
		}
		if err := alternate(ctx, e.scale.ShortRounds, ways); err != nil {
			return nil, err
		}
	}
	if err := e.shortPhases(ctx, s); err != nil {
		return nil, err
	}
	return &result{Rows: append(shortRows(s), phaseRows("short: HTTP, 1 client", "HTTP", s)...), Samples: s.list}, nil
}

// shortOnce has one way of asking run for one round.
func (e *env) shortOnce(ctx context.Context, name names, open opener, clients, queries int, s *samples) error {
	m, err := e.member()
	if err != nil {
		return err
	}
	procs := meter{"postgres": e.postmaster, "member": m.pid, "service and host": e.sluice}
	before, err := procs.read()
	if err != nil {
		return err
	}
	l, err := load(ctx, open, clients, queries)
	if err != nil {
		return err
	}
	used, err := procs.since(before)
	if err != nil {
		return err
	}
	s.add(name.p50, "ms", quantile(l.latencies, 0.5))
	s.add(name.p99, "ms", quantile(l.latencies, 0.99))
	s.add(name.rate, "q/s", l.perSecond)
	for _, p := range []string{"member", "service and host", "postgres"} {
		s.add(name.cpu+p, "ms", used[p]*1000/float64(len(l.latencies)+warmUp*clients))
	}
	return nil
}

// shortPhases takes the service's own account of some short queries.
func (e *env) shortPhases(ctx context.Context, s *samples) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	defer c.Close()
	var ids []string
	for range 50 {
		id, _, err := firstRow(ctx, c, time.Now())
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		if err := addPhases(ctx, c, id, "HTTP", s); err != nil {
			return err
		}
	}
	return nil
}

// names are those of the series of one way.
type names struct{ p50, p99, rate, cpu string }

func series3(way string, clients int) names {
	base := fmt.Sprintf("%s, %d clients: ", way, clients)
	return names{base + "p50", base + "p99", base + "rate", base + "CPU per query, "}
}

func shortRows(s *samples) (out []row) {
	line := func(figure, this, base, baseName, unit string) row {
		a, z := s.of(this), s.of(base)
		return row{Figure: "short: " + figure, This: quantity{Value: median(a), Unit: unit}, Runs: len(a)}.
			against(quantity{median(z), unit, baseName}, ratio(a, z))
	}
	ours := []string{prepared, plain, overHTTP}
	for _, w := range ours { // one client: what the way through Sluice adds
		this, base := series3(w, 1), series3(direct, 1)
		adds := median(each(func(a, b float64) float64 { return a - b }, s.of(this.p50), s.of(base.p50)))
		r := line(w+", 1 client, p50", this.p50, base.p50, direct, "ms")
		out = append(out, r.goal(fmt.Sprintf("adds ≤ 0.5 ms: %s", number(adds)), adds <= 0.5),
			line(w+", 1 client, p99", this.p99, base.p99, direct, "ms"))
	}
	out = append(out, line(overHTTP+", 1 client, p50, against a new connection", series3(overHTTP, 1).p50, series3(anewSSH, 1).p50, anewSSH, "ms"))
	out = append(out, line(byChain+", 1 client, p50", series3(byChain, 1).p50, series3(direct, 1).p50, direct, "ms"))
	out = append(out, line(bySSH+", 1 client, p50", series3(bySSH, 1).p50, series3(direct, 1).p50, direct, "ms"))
	for _, w := range ours { // many: against what people use to get in today
		this, base := series3(w, 16), series3(bySSH, 16)
		p50, rate := line(w+", 16 clients, p50", this.p50, base.p50, bySSH, "ms"), line(w+", 16 clients, rate", this.rate, base.rate, bySSH, "q/s")
		out = append(out, p50.goal("< 1", *p50.Ratio < 1), line(w+", 16 clients, p99", this.p99, base.p99, bySSH, "ms"),
			rate.goal("> 1", *rate.Ratio > 1))
	}
	for _, p := range []string{"member", "service and host"} {
		v := s.of(series3(overHTTP, 16).cpu + p)
		out = append(out, row{Figure: "short: " + overHTTP + ", 16 clients, CPU per query, " + p, This: quantity{Value: median(v), Unit: "ms"}, Runs: len(v)})
	}
	return append(out,
		line(byChain+", 16 clients, rate", series3(byChain, 16).rate, series3(bySSH, 16).rate, bySSH, "q/s"),
		line(overHTTP+", 16 clients, rate", series3(overHTTP, 16).rate, series3(byChain, 16).rate, byChain, "q/s"),
		line(overHTTP+", 16 clients, CPU per query, postgres", series3(overHTTP, 16).cpu+"postgres", series3(direct, 16).cpu+"postgres", direct, "ms"),
		line(bySSH+", 16 clients, rate", series3(bySSH, 16).rate, series3(direct, 16).rate, direct, "q/s"))
}

// openAnew signs in for each query.
func openAnew(connString string) opener {
	return func(context.Context) (ask, func(), error) {
		return func(ctx context.Context) error {
			one, end, err := openPgx(connString)(ctx)
			if err != nil {
				return err
			}
			defer end()
			return one(ctx)
		}, func() {}, nil
	}
}

func openPgx(connString string) opener {
	return func(ctx context.Context) (ask, func(), error) {
		conn, err := pgx.Connect(ctx, connString)
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context) error {
			var one int
			if err := conn.QueryRow(ctx, shortQuery).Scan(&one); err != nil {
				return err
			}
			if one != 1 {
				return errors.New("select 1 did not give 1")
			}
			return nil
		}, func() { _ = conn.Close(context.WithoutCancel(ctx)) }, nil
	}
}

func (e *env) openPlain(context.Context) (ask, func(), error) {
	c, err := dialFlight(e.stack.Flight, e.stack.Token())
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) error {
		var w wantOne
		if err := c.query(ctx, shortQuery, w.use); err != nil {
			return err
		}
		return w.check()
	}, func() { _ = c.Close() }, nil
}

func (e *env) openPrepared(ctx context.Context) (ask, func(), error) {
	c, err := dialFlight(e.stack.Flight, e.stack.Token())
	if err != nil {
		return nil, nil, err
	}
	stmt, ticket, err := c.prepare(ctx, shortQuery)
	if err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	return func(ctx context.Context) error {
			var w wantOne
			if err := c.fetch(ctx, ticket, w.use); err != nil {
				return err
			}
			return w.check()
		}, func() {
			_ = stmt.Close(c.with(context.WithoutCancel(ctx)))
			_ = c.Close()
		}, nil
}

func (e *env) openHTTP(context.Context) (ask, func(), error) {
	c, err := e.client()
	if err != nil {
		return nil, nil, err
	}
	q := client.Query{Source: sourceName, SQL: shortQuery}
	return func(ctx context.Context) error {
		var w wantOne
		if err := queryHTTP(ctx, c, q, w.use); err != nil {
			return err
		}
		return w.check()
	}, c.Close, nil
}

// lastLine is what a program said last, for error messages.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
