package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// ask runs one query and reads its answer.
type ask func(ctx context.Context) error

// opener connects one more client of a kind.
type opener func(ctx context.Context) (ask, func(), error)

// loaded is how a number of queries went.
type loaded struct {
	latencies []float64 // ms
	perSecond float64
}

// warmUp is how many queries a client makes before its time counts.
const warmUp = 20

// load has several clients, each on a connection of its own, ask one query after the
// other, queries in all.
func load(ctx context.Context, open opener, clients, queries int) (loaded, error) {
	asks := make([]ask, clients)
	for i := range asks {
		a, done, err := open(ctx)
		if err != nil {
			return loaded{}, err
		}
		defer done()
		asks[i] = a
	}
	if _, err := together(ctx, asks, warmUp); err != nil {
		return loaded{}, err
	}
	begun := time.Now()
	latencies, err := together(ctx, asks, queries/clients)
	return loaded{latencies, float64(len(latencies)) / time.Since(begun).Seconds()}, err
}

// together has every client ask n times.
func together(ctx context.Context, asks []ask, n int) ([]float64, error) {
	took, failed := make([][]float64, len(asks)), make([]error, len(asks))
	var wg sync.WaitGroup
	for i, a := range asks {
		wg.Go(func() { took[i], failed[i] = repeat(ctx, a, n) })
	}
	wg.Wait()
	var all []float64
	for i := range asks {
		if failed[i] != nil {
			return nil, failed[i]
		}
		all = append(all, took[i]...)
	}
	return all, nil
}

func repeat(ctx context.Context, a ask, n int) ([]float64, error) {
	took := make([]float64, 0, n)
	for range n {
		begun := time.Now()
		if err := a(ctx); err != nil {
			return nil, fmt.Errorf("query %d: %w", len(took)+1, err)
		}
		took = append(took, ms(time.Since(begun)))
	}
	return took, nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
