package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/sluice-gateway/sluice/client"
)

// memory streams results of growing size through a fresh member each, and reads the
// most memory that the member ever had resident.
func memory(ctx context.Context, e *env) (*result, error) {
	if err := e.lineitem(ctx); err != nil {
		return nil, err
	}
	s := &samples{}
	var ways []way
	for _, cells := range e.scale.Cells {
		ways = append(ways, way{cellsName(cells), func(ctx context.Context) error { return e.peakOf(ctx, cells, s) }})
	}
	if err := alternate(ctx, e.scale.MemoryRounds, ways); err != nil {
		return nil, err
	}
	return &result{Rows: e.memoryRows(s), Samples: s.list}, nil
}

func cellsName(cells int) string { return fmt.Sprintf("%d million cells", cells/1_000_000) }

// peakOf measures one result size on a member that has done nothing before.
func (e *env) peakOf(ctx context.Context, cells int, s *samples) error {
	for _, act := range []string{"pause", "wake"} {
		if err := e.gateway(ctx, act); err != nil {
			return err
		}
	}
	m, err := e.member()
	if err != nil {
		return err
	}
	c, err := e.client()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	rows := cells / lineitemColumns
	var got fetched
	if err := queryHTTP(ctx, c, client.Query{Source: sourceName, SQL: e.manyRows(rows), Class: "refresh"}, got.use); err != nil {
		return err
	}
	if got.Rows != int64(rows) {
		return fmt.Errorf("%d rows came, want %d", got.Rows, rows)
	}
	peak, err := peakKB(m.pid)
	s.add(cellsName(cells)+": peak resident", "MB", peak/1e3*1.024)
	s.add(cellsName(cells)+": Arrow", "MB", float64(got.Bytes)/1e6)
	return err
}

// manyRows reads the table as often as it takes.
func (e *env) manyRows(rows int) string {
	times := (rows + e.rows - 1) / e.rows
	return fmt.Sprintf("select * from (%s) as l limit %d", strings.Join(repeated(wholeTable, times), " union all "), rows) //nolint:unqueryvet // the benchmark is about every column
}

func repeated(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

func (e *env) memoryRows(s *samples) (out []row) {
	small := e.scale.Cells[0]
	of := func(cells int) []float64 { return s.of(cellsName(cells) + ": peak resident") }
	for _, cells := range e.scale.Cells {
		a, z := of(cells), of(small)
		r := row{Figure: "memory: member's peak at " + cellsName(cells), This: quantity{Value: median(a), Unit: "MB"}, Runs: len(a)}
		if cells != small {
			r = r.against(quantity{median(z), "MB", "at " + cellsName(small)}, ratio(a, z))
			r = r.goal("≤ 1.2", *r.Ratio <= 1.2)
		}
		out = append(out, r)
	}
	return out
}
