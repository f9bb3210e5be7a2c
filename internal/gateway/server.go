package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// Lookup finds a connector by the type that a data source names.
type Lookup func(sourceType string) (connector.Connector, bool)

// Resolve returns the addresses of a name, as connector.Options wants it.
type Resolve func(ctx context.Context, host string) ([]string, error)

// ServerOptions are the options of NewServer.
type ServerOptions struct {
	Lookup  Lookup       // Required
	Resolve Resolve      // Required
	Logger  *slog.Logger // Required
	// MaxDatabases is how many databases stay open while nothing uses them. Default 64.
	MaxDatabases int
	// IdleClose is how long they do. Default 10 minutes.
	IdleClose time.Duration
	// MaxConns bounds the connections to one data source. Default: the connector's.
	MaxConns int
}

// Server answers the requests of memberapi. It is an http.Handler; requests may run
// concurrently.
type Server struct {
	opts      ServerOptions
	log       *slog.Logger
	databases *databases
	mux       *http.ServeMux
}

// maxRequest bounds a request's body, parameters included.
const maxRequest = 64 << 20

// NewServer makes a Server. Close it after the last request.
func NewServer(opts ServerOptions) *Server {
	if opts.MaxDatabases <= 0 {
		opts.MaxDatabases = 64
	}
	if opts.IdleClose <= 0 {
		opts.IdleClose = 10 * time.Minute
	}
	s := &Server{opts: opts, log: opts.Logger, mux: http.NewServeMux()}
	s.databases = newDatabases(opts)
	s.mux.HandleFunc(http.MethodPost+" "+memberapi.PathQuery, s.serveQuery)
	s.mux.HandleFunc(http.MethodPost+" "+memberapi.PathMetadata, s.serveMetadata)
	s.mux.HandleFunc(http.MethodPost+" "+memberapi.PathPrepare, answer(s.prepare))
	s.mux.HandleFunc(http.MethodPost+" "+memberapi.PathTest, answer(s.test))
	s.mux.HandleFunc(http.MethodPost+" "+memberapi.PathProbe, answer(s.probe))
	return s
}

// Close closes every database.
func (s *Server) Close() error { return s.databases.close() }

// ServeHTTP implements http.Handler. A panic is answered with an Internal error if
// nothing was sent yet, and else ends the connection.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The request before this one on the connection may have left a deadline.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	tw := &trackedWriter{ResponseWriter: w}
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler {
			panic(p)
		}
		s.log.Error("a request failed by a defect", "path", r.URL.Path, "panic", describePanic(p), "stack", string(debug.Stack()))
		if tw.started {
			panic(http.ErrAbortHandler)
		}
		writeError(w, errs.New(errs.Internal, "a defect in the gateway: its log tells more"))
	}()
	s.mux.ServeHTTP(tw, r)
}

// describePanic tells what a panic was without what it may carry of the request.
func describePanic(p any) string {
	var fault runtime.Error
	if err, ok := p.(error); ok && errors.As(err, &fault) {
		return fault.Error()
	}
	return fmt.Sprintf("%T", p)
}

// trackedWriter knows whether an answer has begun.
type trackedWriter struct {
	http.ResponseWriter
	started bool
}

// Unwrap lets http.ResponseController reach the connection.
func (t *trackedWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *trackedWriter) WriteHeader(status int) {
	t.started = true
	t.ResponseWriter.WriteHeader(status)
}

func (t *trackedWriter) Write(p []byte) (int, error) {
	t.started = true
	return t.ResponseWriter.Write(p)
}

// answer makes a handler of a function from one JSON document to another.
func answer[Req, Resp any](f func(context.Context, Req) (Resp, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Req
		if err := readRequest(w, r, &req); err != nil {
			writeError(w, err)
			return
		}
		ctx, cancel := bounded(r.Context(), timeLimit(req))
		defer cancel()
		resp, err := f(ctx, req)
		if err != nil {
			writeError(w, explain(ctx, err))
			return
		}
		writeJSON(w, http.StatusOK, resp)
	}
}

// readRequest reads the whole body, so that the server sees from then on whether the
// client goes away, and decodes it.
func readRequest(w http.ResponseWriter, r *http.Request, req any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return errs.New(errs.Exhausted, "the request is larger than %d MiB", maxRequest>>20).
			WithHint("send fewer parameter rows at once")
	}
	if err != nil {
		return errs.New(errs.Cancelled, "the request broke off: %w", err)
	}
	if err := json.Unmarshal(body, req); err != nil {
		// The decoder's own message may quote the request.
		return errs.New(errs.Invalid, "the request is not the JSON that %s takes", r.URL.Path)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, doc any) {
	body, err := json.Marshal(doc)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"class":"internal","message":"the answer can't be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that is gone needs no answer
}

func writeError(w http.ResponseWriter, err error) {
	e := errs.As(err)
	writeJSON(w, e.Class.HTTPStatus(), e)
}
