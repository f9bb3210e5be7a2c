package service

import (
	"context"
	"errors"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
)

// lostError says that a member was lost before the first byte of its answer, or could not
// take the request: whether it ran is unknown.
type lostError struct {
	error
	// poison: the member ran out of memory, perhaps by this very query.
	poison bool
}

// Unwrap gives the cause.
func (e *lostError) Unwrap() error { return e.error }

// lost makes the error of a request whose round trip failed.
func (s *Service) lost(ctx context.Context, m core.Member, err error) error {
	err = tunnelError(ctx, m, err)
	if ctx.Err() != nil || errs.ClassOf(err) != errs.Unavailable {
		return err
	}
	err = s.withFate(ctx, m, err)
	return &lostError{error: err, poison: strings.Contains(err.Error(), ": "+outOfMemory)}
}

// outOfMemory begins the fate of a member that its memory limit ended.
const outOfMemory = "out of memory"

// mayRunAgain reports whether a query that ended in err may be run a second time: nothing of
// its result was seen, it changes nothing, and it is not what ended the member.
func mayRunAgain(tgt target, err error) bool {
	var lost *lostError
	return tgt.source.ReadOnly && errors.As(err, &lost) && !lost.poison
}

// journey is told how a request fares on its way to a member.
type journey interface {
	granted(g fleet.Grant)              // a member was chosen
	again(m core.Member, because error) // it was lost, and another is asked
}

// unrecorded is the journey of a request without a record.
type unrecorded struct{}

func (unrecorded) granted(fleet.Grant)      {}
func (unrecorded) again(core.Member, error) {}
