package gateway

import (
	"context"
	"errors"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// prepare describes a statement without running it.
func (s *Server) prepare(ctx context.Context, req memberapi.QueryRequest) (memberapi.PrepareResponse, error) {
	var resp memberapi.PrepareResponse
	var stats memberapi.Stats
	err := s.withStatement(ctx, req, &stats, func(stmt adbc.Statement) error {
		if err := stmt.Prepare(ctx); err != nil {
			return atStep(errs.StepExecute, err)
		}
		params, err := stmt.GetParameterSchema()
		if err != nil && !notImplemented(err) {
			return atStep(errs.StepExecute, err)
		}
		resp.Params = encodedSchema(params)
		dataset, err := resultSchema(ctx, stmt, req.Source)
		resp.Dataset = encodedSchema(dataset)
		return err
	})
	return resp, err
}

// resultSchema returns the schema of a statement's result, nil or empty for none.
func resultSchema(ctx context.Context, stmt adbc.Statement, src memberapi.Source) (*arrow.Schema, error) {
	describer, ok := stmt.(adbc.StatementExecuteSchema)
	if !ok {
		return nil, errs.New(errs.Invalid, "the connector for %s can't describe a statement without running it", src.Type).
			WithStep(errs.StepExecute)
	}
	schema, err := describer.ExecuteSchema(ctx)
	return schema, atStep(errs.StepExecute, err)
}

// encodedSchema is the encapsulated message of a schema; nil for one without fields.
func encodedSchema(schema *arrow.Schema) []byte {
	if schema == nil || schema.NumFields() == 0 {
		return nil
	}
	message, _ := arrowipc.EncodeSchema(schema)
	return message
}

func notImplemented(err error) bool {
	var driver adbc.Error
	return errors.As(err, &driver) && driver.Code == adbc.StatusNotImplemented
}
