package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// flightClient is the Apache project's own Go client, with its defaults.
type flightClient struct {
	*flightsql.Client
	headers metadata.MD
}

func dialFlight(address, token string) (*flightClient, error) {
	c, err := flightsql.NewClient(address, nil, nil, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &flightClient{c, metadata.Pairs("authorization", "Bearer "+token, "sluice-source", sourceName)}, nil
}

func (c *flightClient) with(ctx context.Context) context.Context {
	return metadata.NewOutgoingContext(ctx, c.headers)
}

// query runs a statement the plain way, GetFlightInfo and DoGet, and gives each batch to use.
func (c *flightClient) query(ctx context.Context, sql string, use func(arrow.RecordBatch) error) error {
	ctx = c.with(ctx)
	info, err := c.Execute(ctx, sql)
	if err != nil {
		return fmt.Errorf("GetFlightInfo: %w", err)
	}
	for _, ep := range info.Endpoint {
		if err := c.fetch(ctx, ep.GetTicket(), use); err != nil {
			return err
		}
	}
	return nil
}

// prepare returns a prepared statement and its ticket, which serves any number of DoGets.
func (c *flightClient) prepare(ctx context.Context, sql string) (*flightsql.PreparedStatement, *flight.Ticket, error) {
	ctx = c.with(ctx)
	stmt, err := c.Prepare(ctx, sql)
	if err != nil {
		return nil, nil, err
	}
	info, err := stmt.Execute(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(info.Endpoint) != 1 {
		return nil, nil, fmt.Errorf("the prepared statement has %d endpoints, want one", len(info.Endpoint))
	}
	return stmt, info.Endpoint[0].GetTicket(), nil
}

// fetch reads a ticket's stream to its end.
func (c *flightClient) fetch(ctx context.Context, ticket *flight.Ticket, use func(arrow.RecordBatch) error) error {
	r, err := c.DoGet(c.with(ctx), ticket)
	if err != nil {
		return fmt.Errorf("DoGet: %w", err)
	}
	defer r.Release()
	return drain(r, use)
}

// drain reads every batch.
func drain(r array.RecordReader, use func(arrow.RecordBatch) error) error {
	for r.Next() {
		if err := use(r.RecordBatch()); err != nil {
			return err
		}
	}
	return r.Err()
}

// wantOne is the use of "select 1": one row that holds 1.
type wantOne struct{ rows int64 }

func (w *wantOne) use(b arrow.RecordBatch) error {
	w.rows += b.NumRows()
	if col, ok := b.Column(0).(*array.Int32); b.NumRows() > 0 && (!ok || col.Value(0) != 1) {
		return fmt.Errorf("select 1 gave %v", b.Column(0))
	}
	return nil
}

func (w *wantOne) check() error {
	if w.rows != 1 {
		return errors.New("select 1 did not give one row")
	}
	return nil
}
