package gateway

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// limitError is the cause of a context whose request ran out of time.
type limitError struct{ limit time.Duration }

func (e limitError) Error() string { return fmt.Sprintf("the time limit of %s is up", e.limit) }
func (e limitError) Unwrap() error { return context.DeadlineExceeded }

// bounded returns a context that ends after limit; 0 is no limit.
func bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, limitError{limit})
}

// timeLimit is how long a request may take; 0 is no limit.
func timeLimit(req any) time.Duration {
	switch r := req.(type) {
	case memberapi.QueryRequest:
		return time.Duration(r.TimeoutMS) * time.Millisecond
	case memberapi.SourceRequest:
		return time.Duration(r.TimeoutMS) * time.Millisecond
	}
	return 0
}

// explain gives an error its class and, where the request's own limit or its client
// ended it, says so whatever words the failure came back with.
func explain(ctx context.Context, err error) *errs.Error {
	e := classify(err)
	var limit limitError
	switch {
	case errors.As(context.Cause(ctx), &limit):
		return errs.New(errs.Timeout, "the query was ended after its time limit of %s", limit.limit).
			WithStep(e.Step).WithHint("raise the limit, or ask for less")
	case ctx.Err() != nil:
		return errs.New(errs.Cancelled, "the query was cancelled: its client went away").WithStep(e.Step)
	}
	return e
}

// classify is errs.As for errors that ADBC drivers give as well.
func classify(err error) *errs.Error {
	var known *errs.Error
	if errors.As(err, &known) {
		return known
	}
	var driver adbc.Error
	if !errors.As(err, &driver) {
		return errs.As(err)
	}
	e := errs.New(adbcClass(driver.Code), "%s", driver.Msg)
	e.SQLState = strings.Trim(string(driver.SqlState[:]), "\x00")
	return e
}

// adbcClass is the class of a status: what no other class fits is the data source's.
func adbcClass(code adbc.Status) errs.Class {
	switch code {
	case adbc.StatusIO:
		return errs.Unavailable
	case adbc.StatusTimeout:
		return errs.Timeout
	case adbc.StatusCancelled:
		return errs.Cancelled
	case adbc.StatusNotImplemented, adbc.StatusInvalidState:
		return errs.Invalid
	}
	return errs.Source
}

// atStep names the step of an error that names none.
func atStep(step string, err error) error {
	if err == nil {
		return nil
	}
	e := classify(err)
	if e.Step == "" {
		e.Step = step
	}
	return e
}
