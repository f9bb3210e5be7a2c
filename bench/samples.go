package main

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// series is what was measured of one thing, one value per run.
type series struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
}

// samples keeps series in the order in which they began.
type samples struct{ list []*series }

func (s *samples) add(name, unit string, v float64) {
	for _, have := range s.list {
		if have.Name == name {
			have.Values = append(have.Values, v)
			return
		}
	}
	s.list = append(s.list, &series{Name: name, Unit: unit, Values: []float64{v}})
}

func (s *samples) of(name string) []float64 {
	for _, have := range s.list {
		if have.Name == name {
			return have.Values
		}
	}
	return nil
}

// quantile returns the q-th quantile of values by linear interpolation; NaN for none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// ratio is the median of the rounds' ratios: both sides of a round met the same
// machine, whatever else it did.
func ratio(a, b []float64) float64 {
	var each []float64
	for i := range min(len(a), len(b)) {
		each = append(each, a[i]/b[i])
	}
	return median(each)
}

// each applies f to a and b value by value, such as a sum of two series.
func each(f func(a, b float64) float64, a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = f(a[i], b[i])
	}
	return out
}

// way is one way of doing the same thing.
type way struct {
	name string
	run  func(ctx context.Context) error
}

// alternate runs every way once per round, each round beginning with another, so that
// none always follows the same one.
func alternate(ctx context.Context, rounds int, ways []way) error {
	for round := range rounds {
		for i := range ways {
			w := ways[(i+round)%len(ways)]
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := w.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	return nil
}
