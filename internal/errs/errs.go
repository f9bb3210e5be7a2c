// Package errs holds the classes of Sluice's errors and their way to HTTP status
// codes and exit statuses.
//
// An error is made once, where it happens, with its class, the object it is about,
// the reason and, where there is something to do, a hint. Callers branch by class
// alone. Any package may import it; it imports the standard library only.
package errs

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Class says what kind of failure an error is.
type Class string

// The classes.
const (
	Invalid         Class = "invalid"         // what the caller sent is wrong
	Unauthenticated Class = "unauthenticated" // no or bad proof of who is calling
	Denied          Class = "denied"          // the caller may not do this
	NotFound        Class = "not-found"       // the named object does not exist
	Conflict        Class = "conflict"        // the object's state, or another object, stands against it
	Exhausted       Class = "exhausted"       // a limit is reached: try later or raise it
	Unavailable     Class = "unavailable"     // something that is needed is down: try later
	Timeout         Class = "timeout"         // the time that the caller gave is up
	Cancelled       Class = "cancelled"       // the caller went away
	Source          Class = "source"          // the data source refused or failed
	StorageFull     Class = "storage-full"    // the data directory has no room
	Internal        Class = "internal"        // a defect, or something that should not happen
)

// The steps of a query at which it can fail, as errors name them.
const (
	StepAdmit   = "admit"   // authenticate, find the data source, check the request
	StepQueue   = "queue"   // wait until a member of the gateway has room
	StepWake    = "wake"    // lease an address, inject a member, wait until it dialled back
	StepTunnel  = "tunnel"  // reach the member
	StepResolve = "resolve" // resolve the data source's name
	StepConnect = "connect" // reach the data source over TCP
	StepTLS     = "tls"     // agree on TLS with the data source
	StepSignIn  = "sign-in" // authenticate at the data source
	StepExecute = "execute" // the data source runs the query
	StepStream  = "stream"  // rows on their way
)

// Error is an error with a class. Its JSON form is what the HTTP API and the member
// protocol carry.
type Error struct {
	Class   Class  `json:"class"`
	Message string `json:"message"`        // what failed, on which object, and why
	Hint    string `json:"hint,omitempty"` // what to do about it
	Step    string `json:"step,omitempty"` // for a query, one of the Step constants
	// Object is what the error is about, as "Kind/name", and Field the path inside
	// it, such as "subnets[1].prefix".
	Object string `json:"object,omitempty"`
	Field  string `json:"field,omitempty"`
	// SQLState and Position (in characters, from 1) are the data source's own.
	SQLState string `json:"sqlState,omitempty"`
	Position int    `json:"position,omitempty"`
	// RetryAfterMS is after how many milliseconds it is worth trying again, 0 where nothing
	// is known.
	RetryAfterMS int64 `json:"retryAfterMs,omitempty"`

	cause error
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Unwrap gives the cause, if one was kept.
func (e *Error) Unwrap() error { return e.cause }

// New makes an error. A %w in the format keeps the cause.
func New(c Class, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Class: c, Message: err.Error(), cause: errors.Unwrap(err)}
}

// WithHint sets the hint and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// WithStep sets the step and returns e.
func (e *Error) WithStep(step string) *Error { e.Step = step; return e }

// WithRetryAfter sets after what time it is worth trying again and returns e.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	e.RetryAfterMS = d.Milliseconds()
	return e
}

// On sets what the error is about and returns e. Field may be empty.
func (e *Error) On(object, field string) *Error {
	e.Object, e.Field = object, field
	return e
}

// As returns the Error inside err. An error without one becomes Timeout or Cancelled
// if it comes from a context, else Internal. As(nil) is nil.
func As(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Class: Timeout, Message: err.Error(), cause: err}
	case errors.Is(err, context.Canceled):
		return &Error{Class: Cancelled, Message: err.Error(), cause: err}
	}
	return &Error{Class: Internal, Message: err.Error(), cause: err}
}

// ClassOf returns the class of err, as As finds it, and "" for nil.
func ClassOf(err error) Class {
	if err == nil {
		return ""
	}
	return As(err).Class
}

// codes is the one table between classes, HTTP status codes and the CLI's exit statuses.
var codes = map[Class]struct{ http, exit int }{
	Invalid:         {400, 2},
	Unauthenticated: {401, 4},
	Denied:          {403, 4},
	NotFound:        {404, 3},
	Conflict:        {409, 1},
	Exhausted:       {429, 1},
	Unavailable:     {503, 1},
	Timeout:         {504, 124},
	Cancelled:       {499, 1},
	Source:          {422, 1},
	StorageFull:     {507, 1},
	Internal:        {500, 1},
}

// HTTPStatus returns the status code of a class.
func (c Class) HTTPStatus() int {
	if v, ok := codes[c]; ok {
		return v.http
	}
	return 500
}

// ExitStatus returns the exit status of a command that ended in an error of the class.
func (c Class) ExitStatus() int {
	if v, ok := codes[c]; ok {
		return v.exit
	}
	return 1
}
