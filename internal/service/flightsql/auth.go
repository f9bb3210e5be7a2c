package flightsql

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strings"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// The headers in which clients send a token: the usual one, and the one that follows a
// Handshake with a payload.
const (
	headerAuthorization = "authorization"
	headerFlightToken   = "auth-token-bin"
)

// handshakeMethod is the call that needs no principal, since it makes one.
const handshakeMethod = "/Handshake"

// unary authenticates a call and gives its error the form for clients.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, statusOf(s.panicked(info.FullMethod, p))
		}
	}()
	p, err := s.principal(ctx)
	if err == nil {
		resp, err = next(core.WithPrincipal(ctx, p), req)
	}
	if err != nil {
		_ = grpc.SetTrailer(ctx, errorTrailer(err)) // fails only outside a call
		return nil, statusOf(err)
	}
	return resp, nil
}

// stream does the same for streaming calls.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = statusOf(s.panicked(info.FullMethod, p))
		}
	}()
	ctx := ss.Context()
	if !strings.HasSuffix(info.FullMethod, handshakeMethod) {
		var p core.Principal
		p, err = s.principal(ctx)
		ctx = core.WithPrincipal(ctx, p)
	}
	if err == nil {
		err = next(srv, &authenticated{ServerStream: ss, ctx: ctx})
	}
	if err != nil {
		ss.SetTrailer(errorTrailer(err))
		return statusOf(err)
	}
	return nil
}

// panicked keeps a defect in one call from being anything else.
func (s *Server) panicked(method string, p any) error {
	s.log.Error("a call ended in a panic", "method", method, "panic", fmt.Sprint(p))
	return errs.New(errs.Internal, "the service met a defect in itself").WithHint("its log has the details")
}

// authenticated is a stream whose context carries the principal.
type authenticated struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (a *authenticated) Context() context.Context { return a.ctx }

// principal tells who makes a call.
func (s *Server) principal(ctx context.Context) (core.Principal, error) {
	return s.check(ctx, tokenFrom(ctx))
}

func (s *Server) check(ctx context.Context, token string) (core.Principal, error) {
	remote := ""
	if p, ok := peer.FromContext(ctx); ok {
		remote = p.Addr.String()
	}
	return s.opts.Gate.Check(ctx, remote, token)
}

// header returns the first value of a header, "" without one.
func header(ctx context.Context, name string) string {
	if v := metadata.ValueFromIncomingContext(ctx, name); len(v) > 0 {
		return v[0]
	}
	return ""
}

// tokenFrom finds the token of a call: Bearer, the password of Basic, or what a
// Handshake returned.
func tokenFrom(ctx context.Context) string {
	scheme, value, _ := strings.Cut(strings.TrimSpace(header(ctx, headerAuthorization)), " ")
	value = strings.TrimSpace(value)
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return value
	case strings.EqualFold(scheme, "Basic"):
		return basicPassword(value)
	}
	return header(ctx, headerFlightToken)
}

// basicPassword reads the password, with or without the padding that some clients leave out.
func basicPassword(value string) string {
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
	if err != nil {
		return ""
	}
	_, password, _ := strings.Cut(string(raw), ":")
	return password
}

// Handshake answers both kinds of it: Basic in the header, answered by a bearer token
// in header and trailer; and name and password in the payload, answered by a token in
// the payload. The token is the one that came in.
func (s *Server) Handshake(stream flight.FlightService_HandshakeServer) error {
	token := tokenFrom(stream.Context())
	var payload []byte
	if token == "" {
		req, err := stream.Recv()
		if err != nil && err != io.EOF {
			return err
		}
		token, payload = payloadToken(req)
	}
	if _, err := s.check(stream.Context(), token); err != nil {
		return err
	}
	bearer := metadata.Pairs(headerAuthorization, "Bearer "+token)
	stream.SetTrailer(bearer)
	if err := stream.SendHeader(bearer); err != nil {
		return err
	}
	if payload == nil {
		return nil // a client that reads one message and then the trailer must meet the end first
	}
	return stream.Send(&flight.HandshakeResponse{Payload: payload})
}

// payloadToken reads a handshake's payload; the answer to it is the token.
func payloadToken(req *flight.HandshakeRequest) (token string, answer []byte) {
	var basic flight.BasicAuth
	if req == nil || proto.Unmarshal(req.GetPayload(), &basic) != nil {
		return "", nil
	}
	return basic.GetPassword(), []byte(basic.GetPassword())
}
