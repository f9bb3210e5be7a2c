package main

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/client"
)

//go:embed herd.yaml
var herdResources string

const (
	herdPaused  = "at a paused gateway"
	herdAlone   = "one query at a paused one"
	herdRunning = "at a running one"
)

// herd sends many queries at the same moment to a gateway that is paused, and to the same
// when it runs.
func herd(ctx context.Context, e *env) (*result, error) {
	if err := e.gateway(ctx, "pause"); err != nil {
		return nil, err
	}
	if err := e.applyText(herdResources); err != nil {
		return nil, err
	}
	defer e.stack.Must("delete", "datasource", "herd", "gateway", "herd")
	c, err := e.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	s := &samples{}
	ways := []way{
		{herdPaused, func(ctx context.Context) error { return e.herdOnce(ctx, c, herdPaused, "pause", e.scale.Herd, s) }},
		{herdAlone, func(ctx context.Context) error { return e.herdOnce(ctx, c, herdAlone, "pause", 1, s) }},
		{herdRunning, func(ctx context.Context) error { return e.herdOnce(ctx, c, herdRunning, "wake", e.scale.Herd, s) }},
	}
	if err := alternate(ctx, e.scale.HerdRounds, ways); err != nil {
		return nil, err
	}
	return &result{Rows: e.herdRows(s), Samples: s.list}, nil
}

// herdOnce brings the gateway into its state, waits for the pool, and lets all go at once.
func (e *env) herdOnce(ctx context.Context, c *client.Client, name, act string, queries int, s *samples) error {
	if err := c.Gateway(ctx, act, "herd"); err != nil {
		return err
	}
	if err := e.poolFull(ctx); err != nil {
		return err
	}
	took, err := stampede(ctx, c, queries)
	if err != nil {
		return err
	}
	pids, err := e.memberPIDs()
	s.add(name+": slowest", "ms", slices.Max(took))
	s.add(name+": median", "ms", median(took))
	s.add(name+": members", "", float64(len(pids)))
	return err
}

// stampede asks n queries, each in a goroutine that waits for the start.
func stampede(ctx context.Context, c *client.Client, n int) ([]float64, error) {
	took, failed := make([]float64, n), make([]error, n)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i := range took {
		all.Go(func() {
			<-start
			begun := time.Now()
			var w wantOne
			failed[i] = queryHTTP(ctx, c, client.Query{Source: "herd", SQL: shortQuery}, w.use)
			took[i] = ms(time.Since(begun))
		})
	}
	close(start)
	all.Wait()
	for _, err := range failed {
		if err != nil {
			return nil, err
		}
	}
	return took, nil
}

func (e *env) herdRows(s *samples) []row {
	paused, running := s.of(herdPaused+": slowest"), s.of(herdRunning+": slowest")
	alone := s.of(herdAlone + ": slowest")
	most := median(each(func(a, b float64) float64 { return a + b }, running, alone))
	wakes := slices.Max(s.of(herdPaused + ": members"))
	name := fmt.Sprintf("herd: %d queries at once ", e.scale.Herd)
	return []row{
		row{Figure: name + herdPaused + ", the slowest", This: quantity{Value: median(paused), Unit: "ms"}, Runs: len(paused)}.
			against(quantity{median(running), "ms", herdRunning}, ratio(paused, running)).
			goal(fmt.Sprintf("≤ that + a wake of %.0f ms", median(alone)), median(paused) <= most),
		row{Figure: name + herdPaused + ", members woken", This: quantity{Value: wakes}, Runs: len(paused)}.goal("1", wakes == 1),
	}
}
