package config

import (
	"fmt"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// Position is a place in a file. Line and Column count from 1; 0 means not known.
type Position struct {
	File   string
	Line   int
	Column int
}

// String returns "file:line", or what is known of it.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Error is one problem with a document, or a warning about one.
type Error struct {
	Position
	Object string // "VirtualNetwork/corp", or as much of it as is known
	Field  string // "subnets[1].prefix"
	Reason string
	Hint   string
	Class  errs.Class // Invalid, unless the service said otherwise
}

// Error returns "network.yaml:12: VirtualNetwork/corp subnets[1].prefix: reason".
func (e *Error) Error() string {
	var parts []string
	if at := e.Position.String(); at != "" {
		parts = append(parts, at)
	}
	if about := strings.TrimSpace(e.Object + " " + e.Field); about != "" {
		parts = append(parts, about)
	}
	return strings.Join(append(parts, e.Reason), ": ")
}

// Unwrap gives the error its class.
func (e *Error) Unwrap() error {
	class := e.Class
	if class == "" {
		class = errs.Invalid
	}
	return &errs.Error{Class: class, Message: e.Reason, Hint: e.Hint, Object: e.Object, Field: e.Field}
}

// Errors is every problem that was found, in the order of the files.
type Errors []*Error

// Error returns one line per problem.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errs.As find the class of the first.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}

// Locate tells where the field of an object ("VirtualNetwork/corp") stands. A field that
// is not written there is placed at what encloses it.
func Locate(docs []Document, object, field string) (Position, bool) {
	for i := range docs {
		if docs[i].Object() == object {
			return docs[i].At(field), true
		}
	}
	return Position{}, false
}

// Place turns an error of the service into one that says where in docs its cause
// stands; without a place if no document declares its object.
func Place(docs []Document, e *errs.Error) *Error {
	at, _ := Locate(docs, e.Object, e.Field)
	about := strings.TrimSpace(e.Object + " " + e.Field)
	return &Error{
		Position: at, Object: e.Object, Field: e.Field, Class: e.Class, Hint: e.Hint,
		Reason: strings.TrimPrefix(e.Message, about+": "),
	}
}

// objectName returns "Kind/name", or as much of it as is known.
func objectName(kind core.Kind, name string) string {
	if name == "" || kind == "" {
		return string(kind) + name
	}
	return string(kind) + "/" + name
}
