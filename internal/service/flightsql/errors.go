package flightsql

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service"
)

// codeOf is the one table from classes to gRPC's codes. Source is Unknown: gRPC's code
// for errors that come from another system.
func codeOf(c errs.Class) codes.Code {
	switch c {
	case errs.Invalid:
		return codes.InvalidArgument
	case errs.Unauthenticated:
		return codes.Unauthenticated
	case errs.Denied:
		return codes.PermissionDenied
	case errs.NotFound:
		return codes.NotFound
	case errs.Conflict:
		return codes.FailedPrecondition
	case errs.Exhausted, errs.StorageFull:
		return codes.ResourceExhausted
	case errs.Unavailable:
		return codes.Unavailable
	case errs.Timeout:
		return codes.DeadlineExceeded
	case errs.Cancelled:
		return codes.Canceled
	case errs.Source:
		return codes.Unknown
	}
	return codes.Internal
}

// maxText bounds a message in trailers, in bytes: some clients refuse more than 8 KiB
// of trailers, and then show no error at all.
const maxText = 1500

// statusOf gives an error the form for clients: message, hint and code.
func statusOf(err error) error {
	if isStatus(err) {
		return err
	}
	e := errs.As(err)
	text := clip(e.Message)
	if e.Hint != "" {
		text += "\nhint: " + clip(e.Hint)
	}
	out := status.New(codeOf(e.Class), text)
	if e.RetryAfterMS > 0 {
		delay := durationpb.New(time.Duration(e.RetryAfterMS) * time.Millisecond)
		if detailed, err := out.WithDetails(&errdetails.RetryInfo{RetryDelay: delay}); err == nil {
			out = detailed
		}
	}
	return out.Err()
}

// isStatus says whether an error is gRPC's own, or this package's in gRPC's terms.
func isStatus(err error) bool {
	var ours *errs.Error
	if errors.As(err, &ours) {
		return false
	}
	s, ok := status.FromError(err)
	return ok && s.Code() != codes.Unknown
}

// errorTrailer carries the whole error to clients that know it.
func errorTrailer(err error) metadata.MD {
	md := metadata.MD{}
	if q := (*service.QueryError)(nil); errors.As(err, &q) {
		md.Set(TrailerQueryID, q.QueryID)
	}
	if isStatus(err) {
		return md
	}
	e := *errs.As(err)
	e.Message, e.Hint = clip(e.Message), clip(e.Hint)
	if doc, err := json.Marshal(&e); err == nil {
		md.Set(TrailerError, ascii(string(doc)))
	}
	return md
}

// clip shortens a text to maxText bytes.
func clip(s string) string {
	if len(s) <= maxText {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(s[:maxText], "") + "…"
}

// ascii writes a JSON document with nothing beyond ASCII, as trailers want it.
func ascii(doc string) string {
	var b strings.Builder
	for _, r := range doc {
		switch {
		case r < utf8.RuneSelf:
			b.WriteRune(r)
		case r > 0xFFFF:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// unimplemented says what is not there, and what to do.
func unimplemented(format string, args ...any) error {
	return status.Errorf(codes.Unimplemented, format, args...)
}
