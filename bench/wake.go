package main

import (
	"context"
	"time"

	"github.com/sluice-gateway/sluice/client"
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
	s.add(wakeSeries, "ms", ms(took))
	return addPhases(ctx, c, id, s)
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
	out = append(out, phaseRows("wake", s)...)
	pause := s.of("pause")
	return append(out, row{Figure: "wake: pausing, until it is so", This: quantity{Value: median(pause), Unit: "ms"}, Runs: len(pause)})
}
