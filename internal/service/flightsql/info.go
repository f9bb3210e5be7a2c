package flightsql

import (
	"context"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/ident"
	"github.com/sluice-gateway/sluice/internal/service"
)

// maxSQL is the size of the longest statement, in bytes. It travels in tickets, which
// clients take up to 4 MiB of.
const maxSQL = 1 << 20

// typePrefix starts the type of every command of Flight SQL.
const typePrefix = "type.googleapis.com/arrow.flight.protocol.sql."

// parseCommand reads the command of a descriptor.
func parseCommand(raw []byte) (proto.Message, error) {
	var envelope anypb.Any
	if err := proto.Unmarshal(raw, &envelope); err != nil || !strings.HasPrefix(envelope.GetTypeUrl(), typePrefix) {
		return nil, errs.New(errs.Invalid, "the call carries no command of Flight SQL").
			WithHint("this service speaks Arrow Flight SQL; plain Flight has no use here")
	}
	cmd, err := envelope.UnmarshalNew()
	if err != nil {
		return nil, errs.New(errs.Invalid, "the command %s can't be read: %w", strings.TrimPrefix(envelope.GetTypeUrl(), typePrefix), err)
	}
	return cmd, nil
}

func unknownCommand(cmd proto.Message) error {
	name := cmd.ProtoReflect().Descriptor().Name()
	return unimplemented("%s is not supported by this service", name)
}

// errTransaction answers statements inside a transaction.
func errTransaction() error {
	return unimplemented("transactions are not supported: each statement is a transaction of its own")
}

// checkStatement refuses what can't be run.
func checkStatement(sql string, transaction []byte) error {
	switch {
	case len(transaction) > 0:
		return errTransaction()
	case strings.TrimSpace(sql) == "":
		return errs.New(errs.Invalid, "the statement is empty").WithStep(errs.StepAdmit)
	case len(sql) > maxSQL:
		return errs.New(errs.Invalid, "the statement has %d bytes; the limit is %d", len(sql), maxSQL).WithStep(errs.StepAdmit)
	}
	return nil
}

// GetFlightInfo answers at once with a ticket: nothing runs before DoGet.
func (s *Server) GetFlightInfo(ctx context.Context, desc *flight.FlightDescriptor) (*flight.FlightInfo, error) {
	p, err := core.PrincipalFrom(ctx)
	if err != nil {
		return nil, errs.New(errs.Unauthenticated, "%w", err)
	}
	cmd, err := parseCommand(desc.GetCmd())
	if err != nil {
		return nil, err
	}
	t, schema, err := s.plan(ctx, p, cmd, desc.GetCmd())
	if err != nil {
		return nil, err
	}
	t.ID, t.Expires = ident.New("t"), s.opts.Now().Add(s.opts.TicketLife)
	raw, err := s.issue(p, t)
	if err != nil {
		return nil, err
	}
	return &flight.FlightInfo{
		Schema:           schema,
		FlightDescriptor: desc,
		Endpoint:         []*flight.FlightEndpoint{{Ticket: &flight.Ticket{Ticket: raw}, ExpirationTime: timestamppb.New(t.Expires)}},
		TotalRecords:     -1,
		TotalBytes:       -1,
	}, nil
}

// plan makes the ticket of a command and, where it is known, the schema of its result.
func (s *Server) plan(ctx context.Context, p core.Principal, cmd proto.Message, raw []byte) (t ticket, schema []byte, err error) {
	switch cmd := cmd.(type) {
	case *pb.CommandGetSqlInfo:
		return ticket{Command: raw}, encodeSchema(sqlInfoSchema()), nil
	case *pb.CommandPreparedStatementQuery:
		return s.planPrepared(p, cmd)
	case *pb.CommandStatementQuery:
		if err := checkStatement(cmd.GetQuery(), cmd.GetTransactionId()); err != nil {
			return ticket{}, nil, err
		}
		t.SQL = cmd.GetQuery()
	default:
		_, described, ok := metadataRequest(cmd)
		if !ok {
			return ticket{}, nil, unknownCommand(cmd)
		}
		t.Command, schema = raw, encodeSchema(described)
	}
	if t.Class, err = class(ctx); err != nil {
		return ticket{}, nil, err
	}
	t.Source, err = s.source(ctx, p)
	return t, schema, err
}

func (s *Server) planPrepared(p core.Principal, cmd *pb.CommandPreparedStatementQuery) (ticket, []byte, error) {
	st, err := s.prepared.get(p, cmd.GetPreparedStatementHandle())
	if err != nil {
		return ticket{}, nil, err
	}
	t := ticket{Source: st.source, Class: st.class, SQL: st.sql}
	if st.params != nil {
		t.SQL, t.Prepared, t.Binding = "", st.id, st.binding
	}
	return t, st.dataset, nil
}

func encodeSchema(schema *arrow.Schema) []byte {
	message, _ := arrowipc.EncodeSchema(schema)
	return message
}

// PollFlightInfo is GetFlightInfo: the answer is complete at once.
func (s *Server) PollFlightInfo(ctx context.Context, desc *flight.FlightDescriptor) (*flight.PollInfo, error) {
	info, err := s.GetFlightInfo(ctx, desc)
	if err != nil {
		return nil, err
	}
	return &flight.PollInfo{Info: info, Progress: proto.Float64(1)}, nil
}

// GetSchema tells the schema of a result; a statement is prepared for it.
func (s *Server) GetSchema(ctx context.Context, desc *flight.FlightDescriptor) (*flight.SchemaResult, error) {
	p, err := core.PrincipalFrom(ctx)
	if err != nil {
		return nil, errs.New(errs.Unauthenticated, "%w", err)
	}
	cmd, err := parseCommand(desc.GetCmd())
	if err != nil {
		return nil, err
	}
	t, schema, err := s.plan(ctx, p, cmd, desc.GetCmd())
	if err != nil {
		return nil, err
	}
	if _, ok := cmd.(*pb.CommandStatementQuery); ok {
		described, err := s.f.Prepare(ctx, service.QueryInput{Source: t.Source, SQL: t.SQL, Class: t.Class})
		if err != nil {
			return nil, err
		}
		schema = described.Dataset
	}
	if schema == nil { // a statement without rows
		schema = encodeSchema(arrow.NewSchema(nil, nil))
	}
	return &flight.SchemaResult{Schema: schema}, nil
}
