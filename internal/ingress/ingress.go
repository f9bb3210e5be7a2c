// Package ingress is the service's listener on its hosts address: TLS 1.3 with the
// service's own certificate authority, and from there by protocol: join and renew over
// HTTP, members' control and data connections to the tunnel's hub, hosts' goal-state
// streams to the service.
//
// It owns a connection from accept to hand-over, and decides only who someone is. Whether
// they are welcome it asks the service, its only caller.
package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/sockio"
	"github.com/sluice-gateway/sluice/internal/splice"
	"github.com/sluice-gateway/sluice/internal/tunnel"
)

// Options of New.
type Options struct {
	CA *identity.CA // Required
	// Join checks, and uses up, a one-time token, and says who its bearer is. Errors of
	// class Unauthenticated and Unavailable make the client try again. Required.
	Join func(ctx context.Context, req memberapi.JoinRequest) (identity.Subject, error)
	// Authorize reports whether a subject with a valid certificate is still welcome: a
	// live generation of a member, a known host. It is asked for every connection and
	// every renewal. An error of class Denied, NotFound, Conflict or Unauthenticated
	// means no for good, any other that it can't be told now. Required.
	Authorize func(ctx context.Context, subject identity.Subject) error
	Hub       *tunnel.Hub // Required
	// Host serves a host's goal-state stream; it owns conn until it returns, which it
	// does soon after ctx has ended. Required.
	Host func(ctx context.Context, subject identity.Subject, conn net.Conn)

	ServiceName      string        // Default identity.ServiceName
	HandshakeTimeout time.Duration // Default 10 s
	MaxHandshakes    int           // Default 256 at a time, on each listener
	// SourceHandshakes is how many of these one address may have, that of a host for
	// example, whose members all come from there. Default half of them.
	SourceHandshakes int
	// MemberHandshakes is the same for a link-local address: a member's, whose connections
	// were handed over. Default 8.
	MemberHandshakes int
	Logger           *slog.Logger // Default: none
}

// Server accepts on the hosts address.
type Server struct {
	opts      Options
	tls       *tls.Config
	crowdTold atomic.Int64 // when a crowd was told of last: Unix seconds
}

// New makes a server that accepts nothing until Serve.
func New(opts Options) (*Server, error) {
	if opts.CA == nil || opts.Join == nil || opts.Authorize == nil || opts.Hub == nil || opts.Host == nil {
		return nil, errs.New(errs.Internal, "ingress.New: CA, Join, Authorize, Hub and Host are required")
	}
	if opts.ServiceName == "" {
		opts.ServiceName = identity.ServiceName
	}
	if opts.HandshakeTimeout == 0 {
		opts.HandshakeTimeout = 10 * time.Second
	}
	if opts.MaxHandshakes == 0 {
		opts.MaxHandshakes = 256
	}
	if opts.SourceHandshakes == 0 {
		opts.SourceHandshakes = max(opts.MaxHandshakes/2, 1)
	}
	if opts.MemberHandshakes == 0 {
		opts.MemberHandshakes = min(8, opts.SourceHandshakes)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{opts: opts, tls: &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: opts.CA.ServerCertificate(opts.ServiceName),
		ClientAuth:     tls.VerifyClientCertIfGiven, // join comes without; dispatch asks for it
		ClientCAs:      opts.CA.Pool(),
		NextProtos: []string{
			memberapi.ProtoData, memberapi.ProtoControl, memberapi.ProtoHost, memberapi.ProtoHTTP,
		},
		Time:                        opts.CA.Now,
		DynamicRecordSizingDisabled: true,
	}}, nil
}

// Serve accepts on ln until ctx ends, which breaks every connection, or ln fails. It
// closes ln and returns when every connection is over.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	web := s.newWeb(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer web.close()
	defer cancel()
	handshakes := newSlots(s.opts.MaxHandshakes, s.opts.SourceHandshakes, s.opts.MemberHandshakes)
	fresh := make(chan struct{}, s.opts.MaxHandshakes*(1+waitingPerSlot))
	for failures := 0; ; {
		select {
		case fresh <- struct{}{}: // held until the handshake is over, which is bounded
		case <-ctx.Done():
			return nil
		}
		raw, err := ln.Accept()
		if err != nil {
			<-fresh
		}
		switch {
		case ctx.Err() != nil:
			if err == nil {
				raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("hosts address: %w", err)
		case err != nil:
			failures++
			s.opts.Logger.Error("can't accept on the hosts address", "error", err)
			sleep(ctx, min(time.Duration(failures)*10*time.Millisecond, time.Second))
			continue
		}
		failures = 0
		conns.Go(func() { s.serve(ctx, raw, web, handshakes, func() { <-fresh }) })
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve is the life of one connection. handshaken is called when its handshake is over.
func (s *Server) serve(ctx context.Context, raw net.Conn, web *web, handshakes *slots, handshaken func()) {
	conn, err := s.inTurn(ctx, raw, handshakes)
	handshaken()
	if err != nil {
		raw.Close()
		s.tell(raw.RemoteAddr(), err)
		return
	}
	if conn.ConnectionState().NegotiatedProtocol == memberapi.ProtoHTTP {
		web.serve(conn)
		return
	}
	defer conn.Close()
	if err := s.dispatch(ctx, conn); err != nil {
		s.opts.Logger.Warn("connection refused", "remote", raw.RemoteAddr(), "error", err)
	}
}

// tell logs a handshake that came to nothing: who crowds is named, once a second, as whoever
// does it does it often.
func (s *Server) tell(remote net.Addr, err error) {
	level := slog.LevelDebug
	if errors.Is(err, errCrowd) {
		if now, last := time.Now().Unix(), s.crowdTold.Load(); now != last && s.crowdTold.CompareAndSwap(last, now) {
			level = slog.LevelWarn
		}
	}
	s.opts.Logger.Log(context.Background(), level, "handshake failed", "remote", remote, "error", err)
}

// inTurn waits for a slot and runs the handshake.
func (s *Server) inTurn(ctx context.Context, raw net.Conn, handshakes *slots) (*tls.Conn, error) {
	waitCtx, cancel := context.WithTimeout(ctx, s.opts.HandshakeTimeout)
	defer cancel()
	release, err := handshakes.take(waitCtx, raw.RemoteAddr())
	if err != nil {
		return nil, err
	}
	defer release()
	return s.handshake(ctx, raw)
}

func (s *Server) handshake(ctx context.Context, raw net.Conn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.HandshakeTimeout)
	defer cancel()
	if tcp, ok := raw.(sockio.Socket); ok {
		if err := tune(tcp); err != nil {
			return nil, err
		}
		quick, err := sockio.New(tcp)
		if err != nil {
			return nil, err
		}
		raw = &aheadConn{Conn: quick}
	}
	conn := tls.Server(raw, s.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol == "" {
		return nil, errors.New("the client asked for no protocol")
	}
	return conn, nil
}

// unacknowledged is how long what the service sent may stay unacknowledged. The service
// sends requests and goal states only, which their receivers always read: a window
// that stays closed for so long means a dead peer, too.
const unacknowledged = 20 * time.Second

// tune makes the kernel notice a peer that vanished, idle or not.
func tune(c sockio.Socket) error {
	if err := splice.KeepAlive(c); err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("set the user time-out: %w", err)
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds()))
	})
	return errors.Join(err, set)
}

// dispatch hands a connection to whom its protocol names.
func (s *Server) dispatch(ctx context.Context, conn *tls.Conn) error {
	proto := conn.ConnectionState().NegotiatedProtocol
	subject, err := s.subject(conn.ConnectionState())
	if err == nil {
		err = checkRole(proto, subject)
	}
	if err == nil {
		err = s.authorize(ctx, subject)
	}
	if err != nil {
		if proto == memberapi.ProtoControl && forGood(err) {
			tunnel.Refuse(conn, err)
		}
		return fmt.Errorf("%s: %w", proto, err)
	}
	switch proto {
	case memberapi.ProtoControl:
		s.opts.Hub.HandleControl(ctx, subject, conn)
	case memberapi.ProtoData:
		s.opts.Hub.HandleData(ctx, subject, conn)
	case memberapi.ProtoHost:
		defer context.AfterFunc(ctx, func() { conn.NetConn().Close() })()
		s.opts.Host(ctx, subject, conn)
	}
	return nil
}

// subject says who the client is. A resumed session carries the certificate that it was
// begun with, so the end of the certificate is looked at again.
func (s *Server) subject(state tls.ConnectionState) (identity.Subject, error) {
	if len(state.VerifiedChains) == 0 {
		return identity.Subject{}, errs.New(errs.Unauthenticated, "the client showed no certificate")
	}
	leaf := state.PeerCertificates[0]
	if s.opts.CA.Now().After(leaf.NotAfter) {
		return identity.Subject{}, errs.New(errs.Unauthenticated, "the client's certificate ended at %s", leaf.NotAfter.Format(time.RFC3339))
	}
	subject, err := identity.SubjectOf(leaf)
	if err != nil {
		return identity.Subject{}, errs.New(errs.Unauthenticated, "%w", err)
	}
	return subject, nil
}

// checkRole refuses a host that poses as a member, and the other way round.
func checkRole(proto string, s identity.Subject) error {
	want := memberapi.RoleMember
	if proto == memberapi.ProtoHost {
		want = memberapi.RoleHost
	}
	if s.Role != want {
		return errs.New(errs.Denied, "%s may not speak %s", s, proto)
	}
	return nil
}

// authorizeTimeout bounds a question to the service.
const authorizeTimeout = 5 * time.Second

func (s *Server) authorize(ctx context.Context, subject identity.Subject) error {
	ctx, cancel := context.WithTimeout(ctx, authorizeTimeout)
	defer cancel()
	return s.opts.Authorize(ctx, subject)
}

// forGood reports whether an error says that a subject is not, and will not be, welcome.
func forGood(err error) bool {
	switch errs.ClassOf(err) {
	case errs.Denied, errs.NotFound, errs.Conflict, errs.Unauthenticated:
		return true
	}
	return false
}
