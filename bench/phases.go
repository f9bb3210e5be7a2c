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

// addPhases keeps, for a series, what the record of a query says about its time.
func addPhases(ctx context.Context, c *client.Client, id, series string, s *samples) error {
	rec, err := finished(ctx, c, id)
	for _, p := range rec.Phases {
		s.add(series+": phase "+p.Name, "ms", ms(p.Duration))
	}
	return err
}

// phaseRows tell where the time went, by the service's own account.
func phaseRows(benchmark, series string, s *samples) (out []row) {
	for _, name := range []string{
		core.PhaseQueued, core.PhaseLeased, core.PhaseInjected, core.PhaseDialledBack, core.PhaseConnected, core.PhaseExecuted, core.PhaseStreamed,
	} {
		if v := s.of(series + ": phase " + name); len(v) > 0 {
			out = append(out, row{Figure: benchmark + ": phase " + name, This: quantity{Value: median(v), Unit: "ms"}, Runs: len(v)})
		}
	}
	return out
}
