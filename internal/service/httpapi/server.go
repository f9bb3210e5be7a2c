package httpapi

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service/signin"
	"github.com/sluice-gateway/sluice/internal/sockio"
)

// ServerOptions say where a Server listens.
type ServerOptions struct {
	Handler http.Handler // Required: what New returned
	Logger  *slog.Logger // Required
	// Address is a TCP address, Socket the path of a Unix socket. Each is optional.
	Address string
	Socket  string
	// TLS is for Address. Without it, only loopback addresses are taken, unless
	// AllowInsecure says that something in front encrypts.
	TLS           *tls.Config
	AllowInsecure bool
	// Grace is how long requests may go on once Serve's context ends. Default 10s.
	Grace time.Duration
}

// Server serves the API on a TCP address, a Unix socket, or both.
type Server struct {
	opts ServerOptions
	http *http.Server
	tcp  net.Listener
	unix net.Listener

	active atomic.Int64 // requests that are being answered
}

// LoadTLS reads a certificate and its key for ServerOptions.TLS.
func LoadTLS(certFile, keyFile string) (*tls.Config, error) {
	if certFile == "" || keyFile == "" {
		return nil, errs.New(errs.Invalid, "a certificate needs its key, and a key its certificate").WithHint("give both --tls-cert and --tls-key")
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, errs.New(errs.Invalid, "the certificate %s and the key %s can't be used: %w", certFile, keyFile, err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}, nil
}

// Listen binds the addresses. Serve must follow, or Close.
func Listen(opts ServerOptions) (*Server, error) {
	if opts.Grace <= 0 {
		opts.Grace = 10 * time.Second
	}
	s := &Server{opts: opts}
	s.http = &http.Server{
		Handler:           s.counted(opts.Handler),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(opts.Logger.Handler(), slog.LevelDebug),
		TLSConfig:         opts.TLS, // one server serves both listeners: only TCP speaks TLS
	}
	if opts.Address != "" {
		l, err := listenTCP(opts)
		if err != nil {
			return nil, err
		}
		s.tcp = l
	}
	if opts.Socket != "" {
		l, err := listenUnix(opts.Socket)
		if err != nil {
			_ = s.Close() // the first error tells more
			return nil, err
		}
		s.unix = l
	}
	return s, nil
}

func listenTCP(opts ServerOptions) (net.Listener, error) {
	if err := signin.CheckAddress(opts.Address, opts.TLS != nil, opts.AllowInsecure); err != nil {
		return nil, err
	}
	l, err := signin.Listen("tcp", opts.Address)
	if err != nil {
		return nil, err
	}
	return sockio.Listener{Listener: l}, nil
}

// maxSocketPath is what fits into sockaddr_un with its final NUL, in bytes.
const maxSocketPath = 107

// listenUnix binds a socket for its owner. A socket that a dead process left is
// replaced; one that answers is not.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, errs.New(errs.Invalid, "the socket's path %s is %d bytes long, Linux takes %d", path, len(path), maxSocketPath).WithHint("--socket with a shorter one")
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, signin.ListenError(path, syscall.EADDRINUSE)
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		info, err := os.Lstat(path)
		if err == nil && info.Mode().Type() != os.ModeSocket {
			return nil, errs.New(errs.Conflict, "%s is no socket, and is left as it is", path).WithHint("--socket with another path, or remove it")
		}
		_ = os.Remove(path) // Listen reports what stands in the way
	}
	l, err := signin.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, signin.ListenError(path, err)
	}
	return l, nil
}

// Addr is the TCP address, nil without one.
func (s *Server) Addr() net.Addr {
	if s.tcp == nil {
		return nil
	}
	return s.tcp.Addr()
}

// Close stops listening and cuts every connection.
func (s *Server) Close() error {
	err := s.http.Close()
	for _, l := range []net.Listener{s.tcp, s.unix} {
		if l != nil {
			_ = l.Close() // Serve may have closed it before
		}
	}
	return err
}

// Serve answers until ctx ends, then lets requests finish within the grace, and
// returns nil; or it returns why it could not go on.
func (s *Server) Serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if s.tcp != nil {
		l := s.tcp
		if s.opts.TLS != nil {
			group.Go(func() error { return served(s.http.ServeTLS(l, "", "")) })
		} else {
			group.Go(func() error { return served(s.http.Serve(l)) })
		}
	}
	if s.unix != nil {
		group.Go(func() error { return served(s.http.Serve(s.unix)) })
	}
	group.Go(func() error {
		<-ctx.Done()
		return s.shutdown()
	})
	return group.Wait()
}

func (s *Server) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.Grace)
	defer cancel()
	if err := s.http.Shutdown(ctx); err == nil {
		return nil
	}
	s.opts.Logger.Info("requests are cut off at the end of the grace", "grace", s.opts.Grace, "requests", s.active.Load())
	err := s.http.Close()
	// Their contexts are cancelled now: let them end their queries.
	for deadline := time.Now().Add(cutOffTimeout); s.active.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

// cutOffTimeout bounds how long requests whose connections are gone may take to end.
const cutOffTimeout = 5 * time.Second

// counted keeps the number of requests that are being answered.
func (s *Server) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.active.Add(1)
		defer s.active.Add(-1)
		h.ServeHTTP(w, r)
	})
}

// served says whether a listener ended other than by Close or Shutdown.
func served(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
