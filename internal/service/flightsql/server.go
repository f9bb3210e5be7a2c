// Package flightsql is the service's Arrow Flight SQL front end.
//
// It owns the Flight protocol: who calls, tickets, sessions, prepared statements, and
// how errors look to gRPC clients. It passes the frames of results on without decoding
// them. It does not own what a query does: that is the service.Frontend's. The sluice
// binary makes it; nothing else imports it.
//
// The data source of a call is named by the gRPC header sluice-source, or by the
// session option catalog. What a ticket or a session needs is sealed into it, so that
// memory is held by prepared statements and running calls only.
package flightsql

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service"
	"github.com/sluice-gateway/sluice/internal/service/signin"
	"github.com/sluice-gateway/sluice/internal/sockio"
)

// Names of headers and trailers, as gRPC spells them.
const (
	HeaderSource   = "sluice-source"   // of a call: the data source
	HeaderClass    = "sluice-class"    // of a call: interactive (default) or refresh
	headerTrace    = "traceparent"     // of a call: W3C trace context
	TrailerQueryID = "sluice-query-id" // the query's ID in the query log
	TrailerError   = "sluice-error"    // errs.Error as JSON in ASCII
)

// Options of a Server.
type Options struct {
	Frontend service.Frontend // Required
	Gate     *signin.Gate     // Default: one of its own; share it with other front ends
	Logger   *slog.Logger     // Required
	Version  string           // Required: what GetSqlInfo tells
	// TLS encrypts. Without it, only loopback addresses are taken, unless
	// AllowInsecure says that something in front encrypts.
	TLS           *tls.Config
	AllowInsecure bool
	// Key seals tickets and sessions. Default: a random one; give replicas of a service
	// the same 32 bytes.
	Key []byte
	// MaxStreams bounds results on their way, of all clients. Default 1000.
	MaxStreams int
	// TicketLife is how long a ticket may wait for its DoGet. Default 10m.
	TicketLife time.Duration
	// PreparedIdle is how long an unused prepared statement lives. Default 1h.
	PreparedIdle time.Duration
	// StallTimeout ends a query whose client takes nothing for so long. Default 5m.
	StallTimeout time.Duration
	// Grace is how long calls may go on once Serve's context ends. Default 10s.
	Grace time.Duration
	Now   func() time.Time // Default time.Now
}

func (o *Options) defaults() {
	if o.Gate == nil {
		o.Gate = signin.New(signin.Options{Authenticate: o.Frontend.Authenticate})
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = 1000
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	for d, value := range map[*time.Duration]time.Duration{
		&o.TicketLife: 10 * time.Minute, &o.PreparedIdle: time.Hour,
		&o.StallTimeout: 5 * time.Minute, &o.Grace: 10 * time.Second,
	} {
		if *d <= 0 {
			*d = value
		}
	}
}

// Server is the front end.
type Server struct {
	flight.BaseFlightServer // answers Unimplemented to what is not overridden

	opts     Options
	f        service.Frontend
	log      *slog.Logger
	seal     *sealer
	prepared *registry
	running  *running
	pool     *arrowipc.Pool
	codec    *codec
	streams  atomic.Int64
}

// New makes a Server.
func New(opts Options) (*Server, error) {
	opts.defaults()
	s, err := newSealer(opts.Key)
	if err != nil {
		return nil, err
	}
	pool := &arrowipc.Pool{}
	return &Server{
		pool: pool, codec: newCodec(pool),
		opts: opts, f: opts.Frontend, log: opts.Logger, seal: s,
		prepared: newRegistry(opts.PreparedIdle, opts.Now), running: newRunning(opts.Now),
	}, nil
}

// The limits of a connection.
const (
	maxMessage     = 16 << 20 // what a client may send in one message: parameters
	streamsPerConn = 512
	maxHeaderBytes = 64 << 10
	writeBuffer    = 256 << 10 // about 5 % less CPU per byte than the default of 32 KiB
	// Windows for what clients send. A fixed size spares the pings with which gRPC
	// looks for one, after every request: 10 % of the CPU time of a short query.
	receiveWindow = 1 << 20
	// Workers keep the stacks that calls need; a call that finds none free gets a
	// goroutine of its own. 5 % of the CPU time of a short query.
	callWorkers       = 16
	keepaliveTime     = time.Minute
	keepaliveTimeout  = 20 * time.Second
	clientPingMinTime = 10 * time.Second
)

// ServerOptions are what a gRPC server needs that carries s: who may call, the form of
// errors, and limits.
func (s *Server) ServerOptions() []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
		grpc.ForceServerCodecV2(s.codec),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(streamsPerConn),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.WriteBufferSize(writeBuffer),
		grpc.StaticStreamWindowSize(receiveWindow),
		grpc.StaticConnWindowSize(receiveWindow),
		grpc.NumStreamWorkers(callWorkers),
		grpc.ConnectionTimeout(20 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: clientPingMinTime, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	}
	if s.opts.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(s.opts.TLS)))
	}
	return opts
}

// Register adds the Flight service to a gRPC server that was made with ServerOptions.
func (s *Server) Register(to *grpc.Server) { flight.RegisterFlightServiceServer(to, s) }

// Listen binds a TCP address for Serve.
func (s *Server) Listen(address string) (net.Listener, error) {
	if err := signin.CheckAddress(address, s.opts.TLS != nil, s.opts.AllowInsecure); err != nil {
		return nil, err
	}
	return signin.Listen("tcp", address)
}

// Serve answers on l until ctx ends, then lets calls finish within the grace, and
// returns nil once every call has ended; or it returns why it could not go on.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(s.ServerOptions()...)
	s.Register(g)
	failed := make(chan error, 1)
	go func() { failed <- g.Serve(sockio.Listener{Listener: l}) }()
	select {
	case err := <-failed:
		return errs.New(errs.Unavailable, "serve Flight SQL on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	graceful := make(chan struct{})
	go func() { g.GracefulStop(); close(graceful) }()
	select {
	case <-graceful:
	case <-time.After(s.opts.Grace):
		s.log.Info("calls are cut off at the end of the grace", "grace", s.opts.Grace, "streams", s.streams.Load())
		g.Stop() // returns once every handler has
		<-graceful
	}
	<-failed
	return nil
}
