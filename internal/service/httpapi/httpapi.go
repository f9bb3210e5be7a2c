// Package httpapi is the service's HTTP front end: resources, queries, checks.
//
// It owns routes, forms of requests and answers, who may speak over which listener,
// time-outs and the end of streams. It does not own what a request does: that is the
// service.Frontend's. The sluice binary makes it; nothing else imports it but the
// client, for the table of kinds.
//
// Every answer that is not a result is JSON; an error is {"error": errs.Error}, with
// "problems" beside it for a refused apply. A result that fails after its first byte
// ends without its final chunk (HTTP/1.1) or with a reset stream (HTTP/2).
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/catalog"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service"
	"github.com/sluice-gateway/sluice/internal/service/signin"
)

// HeaderQueryID names the query on every answer to one.
const HeaderQueryID = "Sluice-Query-Id"

// Options of the handler.
type Options struct {
	Frontend service.Frontend // Required
	Gate     *signin.Gate     // Default: one of its own; share it with other front ends
	Logger   *slog.Logger     // Required
	Metrics  http.Handler     // Optional: answers GET /metrics
	// StallTimeout ends a result whose client takes nothing for so long. Default 5m.
	StallTimeout time.Duration
}

// api is the handler's state.
type api struct {
	opts Options
	f    service.Frontend
	log  *slog.Logger
}

// New returns the handler of every route. Requests that a Server accepted on its Unix
// socket carry their principal; all others need a bearer token.
func New(opts Options) http.Handler {
	if opts.Gate == nil {
		opts.Gate = signin.New(signin.Options{Authenticate: opts.Frontend.Authenticate})
	}
	if opts.StallTimeout <= 0 {
		opts.StallTimeout = 5 * time.Minute
	}
	a := &api{opts: opts, f: opts.Frontend, log: opts.Logger}
	mux := http.NewServeMux()
	open := func(pattern string, h handler) { mux.Handle(pattern, a.wrap(methods{"GET": h})) }
	open("/healthz", a.healthz)
	open("/readyz", a.readyz)
	mux.Handle("/", a.signedIn(a.routes()))
	return mux
}

// routes are those that need a principal.
func (a *api) routes() http.Handler {
	mux := http.NewServeMux()
	route := func(pattern string, m methods) { mux.Handle(pattern, a.wrap(m)) }
	route("/v1/apply", methods{"POST": a.apply})
	route("/v1/delete", methods{"POST": a.deleteAll})
	route("/v1/check", methods{"POST": a.check})
	route("/v1/catalog", methods{"GET": a.catalog})
	route("/v1/token", methods{"POST": a.renewToken})
	route("/v1/query", methods{"POST": a.query, "GET": a.listQueries})
	route("/v1/{kind}", methods{"GET": a.list})
	route("/v1/{kind}/{name}", methods{"GET": a.get, "PUT": a.put, "DELETE": a.delete})
	route("/v1/{kind}/{name}/{action}", methods{"POST": a.act})
	if a.opts.Metrics != nil {
		mux.Handle("GET /metrics", a.opts.Metrics)
	}
	mux.Handle("/", a.wrap(methods{"": func(_ http.ResponseWriter, r *http.Request) error {
		return errs.New(errs.NotFound, "there is nothing at %s", r.URL.Path).
			WithHint("resources are at /v1/{kind} and /v1/{kind}/{name}, queries go to POST /v1/query")
	}}))
	return mux
}

// handler answers a request or returns the error to answer with.
type handler func(http.ResponseWriter, *http.Request) error

// methods are the handlers of one path; "" takes any method.
type methods map[string]handler

// wrap makes an http.Handler of a path's handlers.
func (a *api) wrap(m methods) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer a.recovered(w, r)
		h, ok := m[r.Method]
		if !ok && r.Method == http.MethodHead {
			h, ok = m["GET"]
		}
		if !ok {
			h, ok = m[""]
		}
		if !ok {
			w.Header().Set("Allow", m.allowed())
			writeStatus(w, http.StatusMethodNotAllowed, errs.New(errs.Invalid, "%s does not take %s", r.URL.Path, r.Method).
				WithHint("it takes %s", m.allowed()))
			return
		}
		if err := h(w, r); err != nil {
			a.fail(w, r, err)
		}
	})
}

// allowed lists the methods in a fixed order.
func (m methods) allowed() string {
	var out []string
	for _, name := range []string{"GET", "POST", "PUT", "DELETE"} {
		if _, ok := m[name]; ok {
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}

// recovered keeps a defect in one request from being anything else.
func (a *api) recovered(w http.ResponseWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	a.log.Error("a request ended in a panic", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p))
	writeError(w, errs.New(errs.Internal, "the service met a defect in itself").WithHint("its log has the details"))
}

func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := errs.As(err)
	if e.Class == errs.Internal {
		a.log.Error("a request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	writeError(w, err)
}

// signedIn lets requests through that carry a principal.
func (a *api) signedIn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := a.principal(r)
		if err != nil {
			if errs.ClassOf(err) == errs.Unauthenticated {
				w.Header().Set("WWW-Authenticate", `Bearer realm="sluice"`)
			}
			a.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(core.WithPrincipal(r.Context(), p)))
	})
}

// principal tells who makes a request.
func (a *api) principal(r *http.Request) (core.Principal, error) {
	if peer, ok := peerFrom(r.Context()); ok {
		return peer.principal()
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		token = ""
	}
	return a.opts.Gate.Check(r.Context(), r.RemoteAddr, strings.TrimSpace(token))
}

func (a *api) healthz(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

// readyTimeout bounds the question whether the service is ready.
const readyTimeout = 5 * time.Second

// readyz tells everyone whether, and only who signed in why not.
func (a *api) readyz(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	err := a.f.Ready(ctx)
	if err == nil {
		return writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
	}
	_, isPeer := peerFrom(r.Context())
	if isPeer || r.Header.Get("Authorization") != "" {
		if _, denied := a.principal(r); denied == nil {
			return errs.New(errs.Unavailable, "the service is not ready: %w", err)
		}
	}
	return errs.New(errs.Unavailable, "the service is not ready")
}

func (a *api) catalog(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]any{"items": catalog.All()})
}

// queryID finds the query that an error belongs to.
func queryID(err error) string {
	if q := (*service.QueryError)(nil); errors.As(err, &q) {
		return q.QueryID
	}
	return ""
}
