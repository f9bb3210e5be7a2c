package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/client"
)

const (
	pooledSeries = "with a pool of one"
	wakeSeries   = "without a pool"
	bareSeries   = "bare runc run"
)

// documentedWake is what the vendor of the original promises: one to three minutes. It
// is a constant, not a measurement; the lower end is what figures are compared to.
const documentedWake = 60_000 // ms

// wake asks a paused gateway, so that a member is injected for the query: one that was
// started in advance, and, in another installation, one that is started then.
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
	s := &samples{}
	var ways []way
	for name, at := range map[string]*env{pooledSeries: e, wakeSeries: e.beside("--pool", "0")} {
		c, err := at.client()
		if err != nil {
			return nil, err
		}
		defer c.Close()
		ways = append(ways, way{name, func(ctx context.Context) error { return at.wakeOnce(ctx, c, name, s) }})
	}
	ways = append(ways, way{bareSeries, func(ctx context.Context) error {
		took, err := bare.run(ctx)
		s.add(bareSeries, "ms", ms(took))
		return err
	}})
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
func (e *env) wakeOnce(ctx context.Context, c *client.Client, series string, s *samples) error {
	begun := time.Now()
	if err := e.gateway(ctx, "pause"); err != nil {
		return err
	}
	s.add("pause", "ms", ms(time.Since(begun)))
	if series == pooledSeries {
		if err := e.poolFull(ctx); err != nil {
			return err
		}
	}
	begun = time.Now()
	id, took, err := firstRow(ctx, c, begun)
	if err != nil {
		return err
	}
	s.add(series, "ms", ms(took))
	return addPhases(ctx, c, id, series, s)
}

// poolFull waits until a member waits that was started in advance.
func (e *env) poolFull(ctx context.Context) error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		out, err := e.stack.Command("host", "status", "--run-dir", e.stack.Run).Output()
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if strings.Contains(string(out), "waits to become a member") {
			return nil
		}
	}
	return errors.New("no member is started in advance")
}

func wakeRows(s *samples) (out []row) {
	bare := s.of(bareSeries)
	for _, w := range []struct {
		series   string
		p50, p95 float64
		goal50   string
		goal95   string
	}{{pooledSeries, 25, 60, "≤ 25 ms", "≤ 60 ms"}, {wakeSeries, 100, 200, "≤ 100 ms", "≤ 200 ms"}} {
		woken := s.of(w.series)
		at := func(q float64, name, goal string, most float64) row {
			a, z := quantile(woken, q), quantile(bare, q)
			return row{Figure: "wake: paused → first row, " + w.series + ", " + name, This: quantity{Value: a, Unit: "ms"}, Runs: len(woken)}.
				against(quantity{z, "ms", bareSeries + ", " + name}, a/z).goal(goal, a <= most)
		}
		out = append(out, at(0.5, "p50", w.goal50, w.p50), at(0.95, "p95", w.goal95, w.p95))
		out = append(out, phaseRows("wake, "+w.series, w.series, s)...)
	}
	pooled := s.of(pooledSeries)
	p50 := median(pooled)
	out = append(out, row{Figure: "wake: the same with a pool, p50", This: quantity{Value: p50, Unit: "ms"}, Runs: len(pooled)}.
		against(quantity{documentedWake, "ms", "of 60–180 s, as documented for the original (not measured)"}, p50/documentedWake))
	pause := s.of("pause")
	return append(out, row{Figure: "wake: pausing, until it is so", This: quantity{Value: median(pause), Unit: "ms"}, Runs: len(pause)})
}
