package flightsql

import (
	"context"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// action is one type of DoAction.
type action struct {
	name, doc string
	do        func(stream flight.FlightService_DoActionServer, body []byte) error
}

// actions lists what DoAction does.
func (s *Server) actions() []action {
	return []action{
		{flightsql.CreatePreparedStatementActionType, "describe a statement and keep it", s.createPrepared},
		{flightsql.ClosePreparedStatementActionType, "forget a statement", s.closePrepared},
		{flight.CancelFlightInfoActionType, "cancel a query", s.cancelFlightInfo},
		{flightsql.CancelQueryActionType, "cancel a query (older form)", s.cancelQuery},
		{flight.SetSessionOptionsActionType, "set the option catalog: the data source", s.setSessionOptions},
		{flight.GetSessionOptionsActionType, "tell the session's options", s.getSessionOptions},
		{flight.CloseSessionActionType, "end the session", s.closeSession},
	}
}

// ListActions implements Flight.
func (s *Server) ListActions(_ *flight.Empty, stream flight.FlightService_ListActionsServer) error {
	for _, a := range s.actions() {
		if err := stream.Send(&flight.ActionType{Type: a.name, Description: a.doc}); err != nil {
			return err
		}
	}
	return nil
}

// DoAction implements Flight.
func (s *Server) DoAction(in *flight.Action, stream flight.FlightService_DoActionServer) error {
	for _, a := range s.actions() {
		if a.name == in.GetType() {
			return a.do(stream, in.GetBody())
		}
	}
	switch in.GetType() {
	case flightsql.BeginTransactionActionType, flightsql.EndTransactionActionType,
		flightsql.BeginSavepointActionType, flightsql.EndSavepointActionType:
		return errTransaction()
	case flightsql.CreatePreparedSubstraitPlanActionType:
		return unimplemented("Substrait plans are not supported: send SQL")
	case flight.RenewFlightEndpointActionType:
		return unimplemented("tickets can't be renewed: ask for a new one with GetFlightInfo")
	}
	return unimplemented("there is no action %q", in.GetType())
}

// begin finds the principal and reads an action's body.
func (s *Server) begin(ctx context.Context, body []byte, req proto.Message) (core.Principal, error) {
	p, err := core.PrincipalFrom(ctx)
	if err != nil {
		return p, errs.New(errs.Unauthenticated, "%w", err)
	}
	if err := proto.Unmarshal(body, req); err != nil {
		return p, errs.New(errs.Invalid, "the action's request can't be read: %w", err)
	}
	return p, nil
}

// beginSQL does the same for the actions of Flight SQL, which wrap their bodies.
func (s *Server) beginSQL(ctx context.Context, body []byte, req proto.Message) (core.Principal, error) {
	var envelope anypb.Any
	p, err := s.begin(ctx, body, &envelope)
	if err != nil {
		return p, err
	}
	if err := envelope.UnmarshalTo(req); err != nil {
		return p, errs.New(errs.Invalid, "the action's request can't be read: %w", err)
	}
	return p, nil
}

func sendResult(stream flight.FlightService_DoActionServer, msg proto.Message) error {
	body, err := proto.Marshal(msg)
	if err != nil {
		return err
	}
	return stream.Send(&flight.Result{Body: body})
}

func sendSQLResult(stream flight.FlightService_DoActionServer, msg proto.Message) error {
	envelope, err := anypb.New(msg)
	if err != nil {
		return err
	}
	return sendResult(stream, envelope)
}
