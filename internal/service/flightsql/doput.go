package flightsql

import (
	"bytes"
	"context"
	"io"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/format"
	"github.com/sluice-gateway/sluice/internal/service"
)

// maxParams is the most, in bytes, that one call may bind.
const maxParams = 16 << 20

// DoPut runs updates and binds parameters. Parameters pass on as they came: only the
// member decodes them.
func (s *Server) DoPut(stream flight.FlightService_DoPutServer) error {
	p, err := core.PrincipalFrom(stream.Context())
	if err != nil {
		return errs.New(errs.Unauthenticated, "%w", err)
	}
	first, err := stream.Recv()
	if err != nil {
		return errs.New(errs.Invalid, "the call ended before its command: %w", err)
	}
	cmd, err := parseCommand(first.GetFlightDescriptor().GetCmd())
	if err != nil {
		return err
	}
	switch cmd := cmd.(type) {
	case *pb.CommandStatementUpdate:
		return s.putUpdate(stream, p, cmd)
	case *pb.CommandPreparedStatementUpdate:
		return s.putPreparedUpdate(stream, p, cmd, first)
	case *pb.CommandPreparedStatementQuery:
		return s.putParameters(stream, p, cmd, first)
	}
	return unknownCommand(cmd)
}

func (s *Server) putUpdate(stream flight.FlightService_DoPutServer, p core.Principal, cmd *pb.CommandStatementUpdate) error {
	ctx := stream.Context()
	if err := checkStatement(cmd.GetQuery(), cmd.GetTransactionId()); err != nil {
		return err
	}
	in := service.QueryInput{SQL: cmd.GetQuery(), Update: true}
	var err error
	if in.Class, err = class(ctx); err != nil {
		return err
	}
	if in.Source, err = s.source(ctx, p); err != nil {
		return err
	}
	return s.update(stream, in)
}

func (s *Server) putPreparedUpdate(stream flight.FlightService_DoPutServer, p core.Principal, cmd *pb.CommandPreparedStatementUpdate, first *flight.FlightData) error {
	st, err := s.prepared.get(p, cmd.GetPreparedStatementHandle())
	if err != nil {
		return err
	}
	params, err := readParams(stream, first)
	if err != nil {
		return err
	}
	if params == nil {
		params = st.params
	}
	return s.update(stream, service.QueryInput{Source: st.source, SQL: st.sql, Class: st.class, Params: params, Update: true, Traceparent: header(stream.Context(), headerTrace)})
}

func (s *Server) putParameters(stream flight.FlightService_DoPutServer, p core.Principal, cmd *pb.CommandPreparedStatementQuery, first *flight.FlightData) error {
	params, err := readParams(stream, first)
	if err != nil {
		return err
	}
	if err := s.prepared.bind(p, cmd.GetPreparedStatementHandle(), params); err != nil {
		return err
	}
	return sendPut(stream, &pb.DoPutPreparedStatementResult{PreparedStatementHandle: cmd.GetPreparedStatementHandle()})
}

// update runs a statement for its number of rows and answers with it.
func (s *Server) update(stream flight.FlightService_DoPutServer, in service.QueryInput) error {
	res, err := s.f.Query(stream.Context(), in)
	if err != nil {
		return err
	}
	stream.SetTrailer(metadata.Pairs(TrailerQueryID, res.QueryID))
	rows, err := affected(res.Body)
	res.Finish(err)
	if err != nil {
		return err
	}
	return sendPut(stream, &pb.DoPutUpdateResult{RecordCount: rows})
}

// affected sums the numbers of rows of an update; -1 if one of them is not known.
func affected(body io.Reader) (int64, error) {
	var total int64
	err := format.Each(body, func(batch arrow.RecordBatch) error {
		if batch.NumCols() != 1 {
			return errs.New(errs.Internal, "the answer to an update has %d columns", batch.NumCols())
		}
		counts, ok := batch.Column(0).(*array.Int64)
		if !ok {
			return errs.New(errs.Internal, "the answer to an update is a column of %s", batch.Column(0).DataType())
		}
		for i := range counts.Len() {
			if n := counts.Value(i); counts.IsNull(i) || n < 0 || total < 0 {
				total = -1
			} else {
				total += n
			}
		}
		return nil
	})
	return total, err
}

// receiver is the part of a DoPut stream that readParams needs.
type receiver interface {
	Recv() (*flight.FlightData, error)
	Context() context.Context
}

// readParams reads the parameters of a call to its end, as an Arrow IPC stream, and
// checks its framing. Clients without parameters send nothing, or a schema without
// fields: nil.
func readParams(stream receiver, first *flight.FlightData) ([]byte, error) {
	var buf bytes.Buffer
	for data, err := first, error(nil); ; data, err = stream.Recv() {
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(data.GetDataHeader()) == 0 {
			continue
		}
		if buf.Len()+len(data.GetDataHeader())+len(data.GetDataBody()) > maxParams {
			return nil, errs.New(errs.Exhausted, "the parameters are over the limit of %d bytes", maxParams).WithStep(errs.StepAdmit)
		}
		// A bytes.Buffer takes every write.
		_ = arrowipc.WriteFrame(&buf, arrowipc.Frame{Metadata: data.GetDataHeader(), Body: data.GetDataBody()})
	}
	if buf.Len() == 0 {
		return nil, nil
	}
	_ = arrowipc.WriteEOS(&buf)
	return checkParams(buf.Bytes())
}

// checkParams reads a stream of parameters frame by frame.
func checkParams(doc []byte) ([]byte, error) {
	frames := format.NewFrames(bytes.NewReader(doc), arrowipc.Options{})
	for {
		frame, err := frames.Next()
		if err == io.EOF {
			return doc, nil
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "the parameters are not a stream of Arrow: %w", err).WithStep(errs.StepAdmit)
		}
		if frame.Kind != arrowipc.Schema {
			continue
		}
		schema, err := arrowipc.SchemaOf(frame)
		if err != nil {
			return nil, errs.New(errs.Invalid, "the schema of the parameters can't be read: %w", err).WithStep(errs.StepAdmit)
		}
		if schema.NumFields() == 0 {
			return nil, nil
		}
	}
}

func sendPut(stream flight.FlightService_DoPutServer, msg proto.Message) error {
	body, err := proto.Marshal(msg)
	if err != nil {
		return err
	}
	return stream.Send(&flight.PutResult{AppMetadata: body})
}
