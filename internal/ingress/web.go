package ingress

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// Bounds of a join or renew request.
const (
	maxRequest = 64 << 10
	webTimeout = 15 * time.Second
)

// web answers join and renew. Its http.Server accepts what the ingress hands it.
type web struct {
	server *http.Server
	conns  chan net.Conn
	ended  chan struct{}
	once   sync.Once
	done   sync.WaitGroup // the server's loop and its handlers
}

func (s *Server) newWeb(ctx context.Context) *web {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+memberapi.PathJoin, answerWith(s.join))
	mux.HandleFunc("POST "+memberapi.PathRenew, answerWith(s.renew))
	w := &web{conns: make(chan net.Conn), ended: make(chan struct{})}
	w.server = &http.Server{
		Handler:     w.counted(http.MaxBytesHandler(mux, maxRequest)),
		ReadTimeout: webTimeout, WriteTimeout: webTimeout, IdleTimeout: webTimeout,
		MaxHeaderBytes: 16 << 10,
		ConnState:      w.connState,
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ErrorLog:       slog.NewLogLogger(s.opts.Logger.Handler(), slog.LevelWarn),
	}
	w.done.Go(func() { _ = w.server.Serve(w) })
	return w
}

// counted makes close wait for requests that are being answered.
func (w *web) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.done.Add(1)
		defer w.done.Done()
		h.ServeHTTP(rw, r)
	})
}

// connState closes a connection that the server accepted while it was being closed.
func (w *web) connState(c net.Conn, state http.ConnState) {
	if state != http.StateNew {
		return
	}
	select {
	case <-w.ended:
		c.Close()
	default:
	}
}

// serve hands a connection over; the server owns it from here.
func (w *web) serve(c net.Conn) {
	select {
	case w.conns <- c:
	case <-w.ended:
		c.Close()
	}
}

// close breaks what is open and ends the server.
func (w *web) close() {
	_ = w.server.Close()
	w.done.Wait()
}

// Accept implements net.Listener.
func (w *web) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.ended:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (w *web) Close() error {
	w.once.Do(func() { close(w.ended) })
	return nil
}

// Addr implements net.Listener.
func (w *web) Addr() net.Addr { return &net.TCPAddr{} }

// answerWith makes an HTTP handler of a function that issues certificates.
func answerWith(issue func(*http.Request) (memberapi.CertResponse, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		resp, err := issue(r)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			e := errs.As(err)
			w.WriteHeader(e.Class.HTTPStatus())
			_ = json.NewEncoder(w).Encode(e)
			return
		}
		_ = json.NewEncoder(w).Encode(resp)
	}
}

// join issues a first certificate for a one-time token.
func (s *Server) join(r *http.Request) (memberapi.CertResponse, error) {
	var req memberapi.JoinRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return memberapi.CertResponse{}, errs.New(errs.Invalid, "the join request is not JSON of the expected form")
	}
	// A request that can't be signed must not use up the token.
	if err := identity.CheckRequest(req.CSR); err != nil {
		return memberapi.CertResponse{}, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), authorizeTimeout)
	defer cancel()
	subject, err := s.opts.Join(ctx, req)
	if err != nil {
		s.opts.Logger.Warn("join refused", "role", req.Role, "name", req.Name, "error", err)
		return memberapi.CertResponse{}, err
	}
	if subject.Role != req.Role || subject.Name != req.Name {
		return memberapi.CertResponse{}, errs.New(errs.Denied, "the token is not that of %s %s", req.Role, req.Name)
	}
	return s.sign(req.CSR, subject)
}

// renew issues the next certificate to whoever shows a valid one.
func (s *Server) renew(r *http.Request) (memberapi.CertResponse, error) {
	var req memberapi.RenewRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return memberapi.CertResponse{}, errs.New(errs.Invalid, "the renew request is not JSON of the expected form")
	}
	subject, err := s.subject(tlsState(r))
	if err != nil {
		return memberapi.CertResponse{}, err
	}
	if err := s.authorize(r.Context(), subject); err != nil {
		s.opts.Logger.Warn("renewal refused", "subject", subject.String(), "error", err)
		if forGood(err) {
			err = errs.New(errs.Denied, "%w", err)
		}
		return memberapi.CertResponse{}, err
	}
	return s.sign(req.CSR, subject)
}

func tlsState(r *http.Request) tls.ConnectionState {
	if r.TLS == nil {
		return tls.ConnectionState{}
	}
	return *r.TLS
}

func (s *Server) sign(csr []byte, subject identity.Subject) (memberapi.CertResponse, error) {
	der, notAfter, err := s.opts.CA.Sign(csr, subject, 0)
	if err != nil {
		return memberapi.CertResponse{}, err
	}
	s.opts.Logger.Info("certificate issued", "subject", subject.String(), "notAfter", notAfter)
	return memberapi.CertResponse{Certificate: der, NotAfter: notAfter, Lifetime: s.opts.CA.Left(notAfter)}, nil
}
