package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service"
)

// The sizes, in bytes, of the largest requests.
const (
	maxApply   = 32 << 20
	maxQuery   = 2 << 20
	maxRequest = 1 << 20
)

// bodyTimeout bounds the reading of a request's body.
const bodyTimeout = 30 * time.Second

// statusError is an error with a status code of its own.
type statusError struct {
	status int
	err    *errs.Error
}

// Error implements error.
func (e statusError) Error() string { return e.err.Error() }

// Unwrap gives the classified error.
func (e statusError) Unwrap() error { return e.err }

// readJSON reads a request's body strictly: one document, no unknown field.
func readJSON(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if media, _, err := mime.ParseMediaType(ct); err != nil || media != "application/json" {
			return statusError{http.StatusUnsupportedMediaType, errs.New(errs.Invalid, "the body must be JSON, not %q", ct).
				WithHint("send the header Content-Type: application/json")}
		}
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // a test's recorder has no deadlines
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return bodyError(err, limit)
	}
	_ = rc.SetReadDeadline(time.Time{})
	return decodeStrict(body, into)
}

func bodyError(err error, limit int64) error {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return statusError{http.StatusRequestEntityTooLarge, errs.New(errs.Invalid, "the body is over the limit of %d bytes", limit)}
	}
	return errs.New(errs.Invalid, "the body could not be read: %w", err)
}

// decodeStrict reads exactly one JSON document.
func decodeStrict(body []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return errs.New(errs.Invalid, "the body is empty")
		}
		return errs.New(errs.Invalid, "the body is not the JSON that is expected: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errs.New(errs.Invalid, "the body goes on after its JSON document")
	}
	return nil
}

// errorBody is the form of every error.
type errorBody struct {
	Error    *errs.Error   `json:"error"`
	Problems []*errs.Error `json:"problems,omitempty"`
}

// writeError answers with an error and the status of its class.
func writeError(w http.ResponseWriter, err error) {
	e := errs.As(err)
	status := e.Class.HTTPStatus()
	if s := (statusError{}); errors.As(err, &s) {
		status = s.status
	}
	if id := queryID(err); id != "" {
		w.Header().Set(HeaderQueryID, id)
	}
	if e.Class == errs.Exhausted || e.Class == errs.Unavailable {
		w.Header().Set("Retry-After", strconv.FormatInt(max(1, (e.RetryAfterMS+999)/1000), 10)) // whole seconds
	}
	body := errorBody{Error: e}
	if refused := (*service.ApplyError)(nil); errors.As(err, &refused) {
		body.Problems = refused.Problems
		body.Error = summary(refused)
	}
	_ = writeJSON(w, status, body) // a client that is gone needs no answer
}

// summary speaks for all problems of an apply.
func summary(refused *service.ApplyError) *errs.Error {
	e := errs.As(refused)
	if len(refused.Problems) == 1 {
		return e
	}
	return errs.New(e.Class, "nothing was applied: there are %d problems", len(refused.Problems))
}

func writeStatus(w http.ResponseWriter, status int, e *errs.Error) {
	writeError(w, statusError{status, e})
}

func writeJSON(w http.ResponseWriter, status int, doc any) error {
	body, err := json.Marshal(doc)
	if err != nil {
		return errs.New(errs.Internal, "encode the answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone needs no answer
	return nil
}

// view is a service.View in its JSON form: one flat object, "kind" first, "status" last.
type view service.View

// MarshalJSON implements json.Marshaler.
func (v view) MarshalJSON() ([]byte, error) {
	object, err := json.Marshal(v.Object)
	if err != nil {
		return nil, err
	}
	if len(object) < 2 || object[0] != '{' {
		return nil, fmt.Errorf("a %s is not a JSON object", v.Kind)
	}
	kind, err := json.Marshal(v.Kind)
	if err != nil {
		return nil, err
	}
	out := append([]byte(`{"kind":`), kind...)
	if fields := object[1 : len(object)-1]; len(fields) > 0 {
		out = append(append(out, ','), fields...)
	}
	if v.Status != nil {
		status, err := json.Marshal(v.Status)
		if err != nil {
			return nil, err
		}
		out = append(append(out, `,"status":`...), status...)
	}
	return append(out, '}'), nil
}

// items is the form of every list.
func items(views []service.View) map[string][]view {
	out := make([]view, len(views))
	for i, v := range views {
		out[i] = view(v)
	}
	return map[string][]view{"items": out}
}

// flag reads a boolean parameter of a request.
func flag(r *http.Request, name string) (bool, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, errs.New(errs.Invalid, "the parameter %s is true or false, not %q", name, s)
	}
	return v, nil
}

// period reads a parameter that is a duration such as 10s; 0 without one.
func period(r *http.Request, name string, most time.Duration) (time.Duration, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > most {
		return 0, errs.New(errs.Invalid, "the parameter %s is a duration such as 10s, up to %s, not %q", name, most, s)
	}
	return d, nil
}
