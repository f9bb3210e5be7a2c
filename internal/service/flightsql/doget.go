package flightsql

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"google.golang.org/grpc/metadata"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/format"
	"github.com/sluice-gateway/sluice/internal/service"
)

// DoGet runs the query of a ticket and passes the member's frames on.
func (s *Server) DoGet(in *flight.Ticket, stream flight.FlightService_DoGetServer) error {
	p, err := core.PrincipalFrom(stream.Context())
	if err != nil {
		return errs.New(errs.Unauthenticated, "%w", err)
	}
	t, err := s.redeem(p, in.GetTicket())
	if err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	ctx, end, err := s.running.start(stream.Context(), t.ID)
	if err != nil {
		return err
	}
	defer end()
	if info, ok := sqlInfoCommand(t); ok {
		return s.sendSQLInfo(stream, info)
	}
	res, err := s.run(ctx, p, t)
	if err != nil {
		return cancelledAs(ctx, err)
	}
	return cancelledAs(ctx, s.forward(stream, res, end))
}

// enter counts a stream, or refuses it over the limit.
func (s *Server) enter() (leave func(), err error) {
	if n := s.streams.Add(1); n > int64(s.opts.MaxStreams) {
		s.streams.Add(-1)
		return nil, errs.New(errs.Exhausted, "%d results are on their way: that is the limit of this service", s.opts.MaxStreams).
			WithStep(errs.StepAdmit).WithHint("read or cancel other results first, or try again later")
	}
	return func() { s.streams.Add(-1) }, nil
}

// cancelledAs names the cause where a query ended because CancelFlightInfo asked for it.
func cancelledAs(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause == errCancelled {
		return cause
	}
	return err
}

// run asks the service for what a ticket stands for.
func (s *Server) run(ctx context.Context, p core.Principal, t ticket) (*service.Result, error) {
	if t.Command != nil {
		cmd, err := parseCommand(t.Command)
		if err != nil {
			return nil, err
		}
		req, _, ok := metadataRequest(cmd)
		if !ok {
			return nil, unknownCommand(cmd)
		}
		return s.f.Metadata(ctx, t.Source, req)
	}
	in := service.QueryInput{Source: t.Source, SQL: t.SQL, Class: t.Class, Traceparent: header(ctx, headerTrace)}
	if t.Prepared != "" {
		st, err := s.prepared.get(p, []byte(t.Prepared))
		if err != nil {
			return nil, err
		}
		if st.binding != t.Binding {
			return nil, errs.New(errs.Conflict, "the statement was given other parameters since the ticket was made").WithStep(errs.StepAdmit)
		}
		in.SQL, in.Params = st.sql, st.params
	}
	return s.f.Query(ctx, in)
}

// forward sends a result, frame by frame, and ends its record. A client that takes
// nothing for too long loses the query; the call itself ends once it takes up again,
// or goes away: gRPC can't be interrupted while it waits for the client.
func (s *Server) forward(stream flight.FlightService_DoGetServer, res *service.Result, end func()) (err error) {
	id := metadata.Pairs(TrailerQueryID, res.QueryID)
	stream.SetTrailer(id)
	if err := stream.SetHeader(id); err != nil {
		res.Finish(err)
		return err
	}
	var once sync.Once
	finish := func(err error) { once.Do(func() { res.Finish(err) }) }
	defer func() { finish(err) }()
	stall := res.Stall
	if stall <= 0 {
		stall = s.opts.StallTimeout
	}
	stalled := time.AfterFunc(stall, func() {
		end() // the reader of the result is not inside Read: the timer runs during Send only
		finish(service.Stalled(stall))
	})
	if !stalled.Stop() {
		return service.Stalled(stall)
	}

	frames := format.NewFrames(res.Body, arrowipc.Options{Pool: s.pool})
	for {
		frame, err := frames.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		stalled.Reset(stall)
		err = stream.SendMsg(&frame) // the codec takes over the body
		if !stalled.Stop() {
			return service.Stalled(stall)
		}
		if err != nil {
			return errs.New(errs.Cancelled, "the client went away: %w", err).WithStep(errs.StepStream)
		}
	}
}

// sqlInfoCommand says whether a ticket asks for SqlInfo, which needs no source.
func sqlInfoCommand(t ticket) (*pb.CommandGetSqlInfo, bool) {
	if t.Command == nil {
		return nil, false
	}
	cmd, err := parseCommand(t.Command)
	if err != nil {
		return nil, false
	}
	info, ok := cmd.(*pb.CommandGetSqlInfo)
	return info, ok
}

// sendSQLInfo answers from memory.
func (s *Server) sendSQLInfo(stream flight.FlightService_DoGetServer, cmd *pb.CommandGetSqlInfo) error {
	doc, err := sqlInfoStream(s.opts.Version, cmd.GetInfo())
	if err != nil {
		return err
	}
	frames := format.NewFrames(bytes.NewReader(doc), arrowipc.Options{})
	for {
		frame, err := frames.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&flight.FlightData{DataHeader: frame.Metadata, DataBody: frame.Body}); err != nil {
			return err
		}
	}
}
