package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/core"
)

const (
	wakeSeries = "paused → first row"
	bareSeries = "bare runc run"
)

// documentedWake is what the vendor of the original promises: one to three minutes. It
// is a constant, not a measurement; the lower end is what figures are compared to.
const documentedWake = 60_000 // ms

// wake asks a paused gateway, so that a container is injected for the query.
func wake(ctx context.Context, e *env) (*result, error) {
	if err := e.gateway(ctx, "wake"); err != nil {
		return nil, err
	}
	m, err := e.member()
	if err != nil {
		return nil, err
	}
	bare, err := copyBundle(m)
	if err != nil {
		return nil, err
	}
	defer bare.remove()
	c, err := e.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	s := &samples{}
	ways := []way{
		{wakeSeries, func(ctx context.Context) error { return e.wakeOnce(ctx, c, s) }},
		{bareSeries, func(ctx context.Context) error {
			took, err := bare.run(ctx)
			s.add(bareSeries, "ms", ms(took))
			return err
		}},
	}
	if err := alternate(ctx, 1, ways); err != nil {
		return nil, err
	}
	*s = samples{}
	if err := alternate(ctx, e.scale.Wakes, ways); err != nil {
		return nil, err
	}
	return &result{Rows: wakeRows(s), Samples: s.list}, nil
}

// wakeOnce pauses the gateway, waits for that, and asks it.
func (e *env) wakeOnce(ctx context.Context, c *client.Client, s *samples) error {
	begun := time.Now()
	if err := e.gateway(ctx, "pause"); err != nil {
		return err
	}
	s.add("pause", "ms", ms(time.Since(begun)))
	begun = time.Now()
	id, took, err := firstRow(ctx, c, begun)
	if err != nil {
		return err
	}
	rec, err := finished(ctx, c, id)
	if err != nil {
		return err
	}
	s.add(wakeSeries, "ms", ms(took))
	for _, p := range rec.Phases {
		s.add("phase "+p.Name, "ms", ms(p.Duration))
	}
	return nil
}

// firstRow runs a query to its end and says when its first row was there.
func firstRow(ctx context.Context, c *client.Client, begun time.Time) (id string, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	res, err := c.Query(ctx, client.Query{Source: sourceName, SQL: shortQuery}, client.MediaArrow)
	if err != nil {
		return "", 0, err
	}
	defer res.Body.Close()
	r, err := ipc.NewReader(res.Body)
	if err != nil {
		return "", 0, err
	}
	defer r.Release()
	for r.Next() {
		if took == 0 && r.RecordBatch().NumRows() > 0 {
			took = time.Since(begun)
		}
	}
	if r.Err() != nil {
		return "", 0, r.Err()
	}
	if took == 0 {
		return "", 0, errors.New("no row came")
	}
	_, err = io.Copy(io.Discard, res.Body)
	return res.QueryID, took, err
}

// finished waits for the record of a query that has just ended.
func finished(ctx context.Context, c *client.Client, id string) (core.Query, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		rec, err := c.QueryRecord(ctx, id)
		if err != nil {
			return rec, err
		}
		if rec.State != core.QueryRunning {
			return rec, nil
		}
		select {
		case <-ctx.Done():
			return rec, fmt.Errorf("the record of %s does not end: %w", id, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func wakeRows(s *samples) []row {
	woken, bare := s.of(wakeSeries), s.of(bareSeries)
	at := func(q float64, name string) row {
		a, z := quantile(woken, q), quantile(bare, q)
		return row{Figure: "wake: paused → first row, " + name, This: quantity{Value: a, Unit: "ms"}, Runs: len(woken)}.
			against(quantity{z, "ms", bareSeries + ", " + name}, a/z)
	}
	p50 := at(0.5, "p50")
	out := []row{
		p50.goal("≤ 150 ms", p50.This.Value <= 150), at(0.95, "p95"),
		row{Figure: "wake: the same, p50", This: p50.This, Runs: len(woken)}.
			against(quantity{documentedWake, "ms", "of 60–180 s, as documented for the original (not measured)"}, p50.This.Value/documentedWake),
	}
	for _, name := range []string{
		core.PhaseQueued, core.PhaseLeased, core.PhaseInjected, core.PhaseDialledBack, core.PhaseConnected, core.PhaseExecuted, core.PhaseStreamed,
	} {
		if v := s.of("phase " + name); len(v) > 0 {
			out = append(out, row{Figure: "wake: phase " + name, This: quantity{Value: median(v), Unit: "ms"}, Runs: len(v)})
		}
	}
	pause := s.of("pause")
	return append(out, row{Figure: "wake: pausing, until it is so", This: quantity{Value: median(pause), Unit: "ms"}, Runs: len(pause)})
}
