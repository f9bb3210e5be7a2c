package httpapi

import (
	"errors"
	"maps"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/format"
	"github.com/sluice-gateway/sluice/internal/service"
)

// queryRequest is the body of POST /v1/query.
type queryRequest struct {
	Source  string          `json:"source"`
	SQL     string          `json:"sql"`
	Class   core.QueryClass `json:"class"`
	Timeout core.Duration   `json:"timeout"`
}

// input checks the request.
func (q queryRequest) input() (service.QueryInput, error) {
	switch {
	case q.Source == "":
		return service.QueryInput{}, errs.New(errs.Invalid, "the query names no data source").On("", "source")
	case strings.TrimSpace(q.SQL) == "":
		return service.QueryInput{}, errs.New(errs.Invalid, "the query has no SQL").On("", "sql")
	case q.Class != "" && q.Class != core.ClassInteractive && q.Class != core.ClassRefresh:
		return service.QueryInput{}, errs.New(errs.Invalid, "%q is not a query class: it is interactive or refresh", q.Class).On("", "class")
	case q.Timeout < 0:
		return service.QueryInput{}, errs.New(errs.Invalid, "the timeout is a duration such as \"30s\"").On("", "timeout")
	}
	return service.QueryInput{Source: q.Source, SQL: q.SQL, Class: q.Class, Timeout: time.Duration(q.Timeout)}, nil
}

func (a *api) query(w http.ResponseWriter, r *http.Request) error {
	if !r.ProtoAtLeast(1, 1) {
		return statusError{http.StatusHTTPVersionNotSupported, errs.New(errs.Invalid,
			"results need HTTP/1.1 or later: with %s a client can't tell a whole one from a broken one", r.Proto)}
	}
	accept := strings.Join(r.Header.Values("Accept"), ",")
	form, ok := format.Negotiate(accept)
	if !ok {
		return statusError{http.StatusNotAcceptable, errs.New(errs.Invalid, "no result has a form that %q accepts", accept).
			WithHint("there are %s, %s, %s and %s", format.MediaJSON, format.MediaCSV, format.MediaArrow, format.MediaParquet)}
	}
	var req queryRequest
	if err := readJSON(w, r, maxQuery, &req); err != nil {
		return err
	}
	in, err := req.input()
	if err != nil {
		return err
	}
	in.Traceparent = r.Header.Get("Traceparent")
	res, err := a.f.Query(r.Context(), in)
	if err != nil {
		return err
	}
	return a.stream(w, form, res)
}

// stream sends a result. It returns an error only if nothing was sent yet; after the
// first byte a failure aborts the connection or the HTTP/2 stream.
func (a *api) stream(w http.ResponseWriter, form format.Format, res *service.Result) error {
	contentType := form.Media
	if form.Media == format.MediaCSV {
		contentType += "; charset=utf-8; header=present"
	}
	stall := res.Stall
	if stall <= 0 {
		stall = a.opts.StallTimeout
	}
	out := &resultWriter{w: w, rc: http.NewResponseController(w), stall: stall, header: http.Header{
		"Content-Type":           {contentType},
		HeaderQueryID:            {res.QueryID},
		"Cache-Control":          {"no-store"},
		"X-Content-Type-Options": {"nosniff"},
	}}
	out.arrived = func() bool { return false }
	if body, ok := res.Body.(interface{ Arrived() bool }); ok {
		out.arrived = body.Arrived
	}
	err := encode(form, out, res)
	if err == nil {
		return nil
	}
	if !out.started {
		w.Header().Set(HeaderQueryID, res.QueryID)
		return err
	}
	a.log.Info("a result broke off", "query", res.QueryID, "class", string(errs.ClassOf(err)), "error", err)
	panic(http.ErrAbortHandler)
}

// encode sends the result and ends the query, whatever happens.
func encode(form format.Format, out *resultWriter, res *service.Result) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errs.New(errs.Internal, "the result could not be encoded: %v", p).WithStep(errs.StepStream)
		}
		res.Finish(err)
	}()
	if _, err = form.Encode(out, res.Body); err != nil {
		return err
	}
	return out.end()
}

// resultWriter sends what encoders write. The first bytes wait for a flush, or until
// there are many, so that an error before any row still has a status of its own.
type resultWriter struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	stall   time.Duration
	header  http.Header
	arrived func() bool // reading on will not wait
	waiting []byte
	started bool
}

var _ format.Flusher = (*resultWriter)(nil)

// maxWaiting is how many bytes wait at the most.
const maxWaiting = 32 << 10

// Write implements io.Writer.
func (o *resultWriter) Write(p []byte) (int, error) {
	if !o.started {
		if len(o.waiting)+len(p) <= maxWaiting {
			o.waiting = append(o.waiting, p...)
			return len(p), nil
		}
		if err := o.start(); err != nil {
			return 0, err
		}
	}
	o.deadline(time.Now().Add(o.stall))
	n, err := o.w.Write(p)
	return n, o.clientGone(err)
}

// start sends headers and what has waited.
func (o *resultWriter) start() error {
	o.started = true
	maps.Copy(o.w.Header(), o.header)
	o.deadline(time.Now().Add(o.stall))
	_, err := o.w.Write(o.waiting)
	o.waiting = nil
	return o.clientGone(err)
}

// end sends what has waited, together with the response's end.
func (o *resultWriter) end() error {
	if o.started {
		return nil
	}
	return o.start()
}

// Flush implements format.Flusher: whatever makes a batch leaves at once, unless the end
// of the result is here as well.
func (o *resultWriter) Flush() error {
	if o.arrived() {
		return nil
	}
	if !o.started {
		if err := o.start(); err != nil {
			return err
		}
	}
	o.deadline(time.Now().Add(o.stall))
	return o.clientGone(o.rc.Flush())
}

// deadline bounds the next write. The HTTP server takes it off after the request.
func (o *resultWriter) deadline(t time.Time) {
	_ = o.rc.SetWriteDeadline(t) // a test's recorder has no deadlines
}

// clientGone classifies a failure to write: it is never the result's.
func (o *resultWriter) clientGone(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return service.Stalled(o.stall)
	}
	return errs.New(errs.Cancelled, "the client went away: %w", err).WithStep(errs.StepStream)
}
