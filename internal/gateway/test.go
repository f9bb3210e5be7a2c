package gateway

import (
	"context"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// defaultTestLimit bounds a test or a probe that names no limit.
const defaultTestLimit = 30 * time.Second

// test makes a connection to a data source step by step. A failed test is an answer,
// not an error: its last step says what failed.
func (s *Server) test(ctx context.Context, req memberapi.SourceRequest) (memberapi.TestResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, defaultTestLimit, limitError{defaultTestLimit})
	defer cancel()
	resp := memberapi.TestResponse{Steps: []memberapi.TestStep{}}
	start := time.Now()
	step := func(name string, d time.Duration, detail string) {
		start = time.Now()
		resp.Steps = append(resp.Steps, memberapi.TestStep{Name: name, Duration: d, Detail: detail})
	}
	if err := s.testSource(ctx, req.Source, step); err != nil {
		e := explain(ctx, err)
		if e.Step == "" {
			e.Step = errs.StepConnect
		}
		resp.Steps = append(resp.Steps, memberapi.TestStep{Name: e.Step, Duration: time.Since(start), Error: e.Message, Hint: e.Hint, Class: e.Class, SQLState: e.SQLState})
	}
	return resp, nil
}

// testSource reports each step that succeeded. Of a driver without steps it tells only
// whether a connection comes about.
func (s *Server) testSource(ctx context.Context, src memberapi.Source, step func(string, time.Duration, string)) error {
	db, err := s.databases.acquire(src)
	if err != nil {
		return err
	}
	defer s.databases.release(db)
	if t, ok := db.Database.(connector.Tester); ok {
		return t.Test(ctx, step)
	}
	var stats memberapi.Stats
	return s.withConnection(ctx, src, "", &stats, func(*database, adbc.Connection) error {
		step(errs.StepConnect, stats.Connect, "")
		return nil
	})
}
