package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/sockio"
)

// stepFunc is told of each step of a connection that succeeded.
type stepFunc func(name string, d time.Duration, detail string)

func noSteps(string, time.Duration, string) {}

// session is what the library makes of a connection, and the way in below it.
type session struct {
	pg *pgconn.PgConn
	in *wire
}

// dial makes a connection step by step, within the source's connectTimeout.
func (c *config) dial(ctx context.Context, step stepFunc) (*session, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errConnectTimeout)
	defer cancel()

	start := time.Now()
	addrs, err := c.lookup(ctx)
	if err != nil {
		return nil, err
	}
	step(errs.StepResolve, time.Since(start), strings.Join(addrs, ", "))

	start = time.Now()
	raw, err := c.connect(ctx, addrs)
	if err != nil {
		return nil, err
	}
	step(errs.StepConnect, time.Since(start), raw.RemoteAddr().String())

	nc := raw
	if c.tls != nil {
		start = time.Now()
		secured, err := c.secure(ctx, raw)
		if err != nil {
			raw.Close()
			return nil, err
		}
		nc = secured
		step(errs.StepTLS, time.Since(start), describeTLS(secured.ConnectionState()))
	}

	start = time.Now()
	s, err := c.signIn(ctx, nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	step(errs.StepSignIn, time.Since(start), fmt.Sprintf("user %s, database %s", c.user, c.database))
	return s, nil
}

// lookup resolves the host, unless it is an address.
func (c *config) lookup(ctx context.Context) ([]string, error) {
	if net.ParseIP(c.host) != nil {
		return []string{c.host}, nil
	}
	addrs, err := c.resolve(ctx, c.host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no addresses")
	}
	if err == nil {
		return addrs, nil
	}
	var known *errs.Error
	if errors.As(err, &known) {
		e := *known // the resolver's class and hint, with this query's step
		if errors.Is(context.Cause(ctx), errConnectTimeout) {
			e.Class = errs.Unavailable
		}
		return nil, e.WithStep(errs.StepResolve).On(c.object, "parameters.host")
	}
	if ctx.Err() != nil {
		return nil, c.interrupted(ctx, errs.StepResolve, "resolve "+c.host)
	}
	return nil, errs.New(errs.Unavailable, "resolve %s: %w", c.host, err).
		WithHint("check the data source's host, and the private DNS zones linked to the virtual network").
		WithStep(errs.StepResolve).On(c.object, "parameters.host")
}

// connect tries the addresses in turn. Each but the last gets its share of the time.
func (c *config) connect(ctx context.Context, addrs []string) (net.Conn, error) {
	var failed error
	for i, addr := range addrs {
		conn, err := c.connectOne(ctx, addr, len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

func (c *config) connectOne(ctx context.Context, addr string, shares int) (net.Conn, error) {
	target := net.JoinHostPort(addr, strconv.Itoa(int(c.port)))
	what := fmt.Sprintf("connect to %s (%s)", c.host, target)
	one := ctx
	if deadline, ok := ctx.Deadline(); ok && shares > 1 {
		var cancel context.CancelFunc
		one, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(shares))
		defer cancel()
	}
	conn, err := new(net.Dialer).DialContext(one, "tcp", target)
	switch {
	case err == nil:
		return sockio.Quick(conn), nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		<-one.Done() // the dialler's timer may be a moment ahead of the context's
		return nil, c.interrupted(one, errs.StepConnect, what)
	case one.Err() != nil:
		return nil, c.interrupted(one, errs.StepConnect, what)
	}
	return nil, c.unreachable(errs.StepConnect, what, err)
}

// secure asks for TLS in the protocol's way and shakes hands.
func (c *config) secure(ctx context.Context, raw net.Conn) (*tls.Conn, error) {
	what := "TLS with " + c.host
	stop := closeOnDone(ctx, raw)
	defer stop()
	if err := requestTLS(raw); err != nil {
		if ctx.Err() != nil {
			return nil, c.interrupted(ctx, errs.StepTLS, what)
		}
		if errors.Is(err, errNoTLS) {
			return nil, c.sourceError(errs.StepTLS, what+": the server does not offer TLS").
				WithHint("turn TLS on at the server, or set the data source's parameter tls to disable")
		}
		return nil, c.unreachable(errs.StepTLS, what, err)
	}
	conn := tls.Client(raw, c.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, c.handshakeError(ctx, what, err)
	}
	return conn, nil
}

func (c *config) handshakeError(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return c.interrupted(ctx, errs.StepTLS, what)
	}
	var netErr *net.OpError
	if errors.Is(err, io.EOF) || errors.As(err, &netErr) && !strings.Contains(err.Error(), "tls: ") {
		return c.unreachable(errs.StepTLS, what, err)
	}
	return c.sourceError(errs.StepTLS, what+": "+err.Error()).
		WithHint("give the authority that signed the server's certificate in the parameter tlsCA, or check less with the parameter tls")
}

var errNoTLS = errors.New("the server does not offer TLS")

// requestTLS sends SSLRequest and reads the one byte that answers it.
func requestTLS(conn net.Conn) error {
	if _, err := conn.Write([]byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] != 'S' {
		return errNoTLS
	}
	return nil
}

// closeOnDone makes blocked reads and writes fail when ctx ends.
func closeOnDone(ctx context.Context, conn net.Conn) (stop func()) {
	s := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { s() }
}

// signIn hands the connection to the library, which authenticates. Its dialler gives
// out this connection first; later calls are cancel requests, which need a new one.
func (c *config) signIn(ctx context.Context, nc net.Conn) (*session, error) {
	pc, err := c.pgconnConfig()
	if err != nil {
		return nil, errs.New(errs.Internal, "postgres: %w", err).WithStep(errs.StepSignIn)
	}
	first := nc
	pc.LookupFunc = func(context.Context, string) ([]string, error) { return []string{nc.RemoteAddr().String()}, nil }
	pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if conn := first; conn != nil {
			first = nil
			return conn, nil
		}
		return c.redial(ctx, network, addr)
	}
	in := &wire{buffers: &c.buffers}
	pc.BuildFrontend = in.build
	pg, err := pgconn.ConnectConfig(ctx, pc)
	if err != nil {
		return nil, c.signInError(ctx, err)
	}
	in.rest()
	return &session{pg: pg, in: in}, nil
}

// redial makes the connection for a cancel request, with TLS where the query's had it.
func (c *config) redial(ctx context.Context, network, addr string) (net.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil || c.tls == nil {
		return raw, err
	}
	conn, err := c.secure(ctx, raw)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

func (c *config) signInError(ctx context.Context, err error) error {
	what := fmt.Sprintf("sign in to %s as %s", c.host, c.user)
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr):
		e := c.serverError(errs.StepSignIn, pgErr)
		e.Message = what + ": " + e.Message
		return e
	case ctx.Err() != nil:
		return c.interrupted(ctx, errs.StepSignIn, what)
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		err = inner // the library's wrapping repeats the address and the user
	}
	return c.unreachable(errs.StepSignIn, what, err)
}

// describeTLS tells version and subject for a test of the data source.
func describeTLS(cs tls.ConnectionState) string {
	s := tls.VersionName(cs.Version)
	if len(cs.PeerCertificates) > 0 {
		s += ", " + cs.PeerCertificates[0].Subject.String()
	}
	return s
}

// reason is the short form of a network error, without addresses said already.
func reason(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the server closed the connection"
	}
	return err.Error()
}
