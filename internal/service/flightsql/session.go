package flightsql

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/apache/arrow-go/v18/arrow/flight"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"google.golang.org/grpc/metadata"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// cookieName is the cookie that holds a session: all of it, sealed, so that sessions
// take no memory and end with their client.
const cookieName = "sluice_flight_session"

// optionCatalog is the session option that names the data source.
const optionCatalog = "catalog"

// session is what a client set with SetSessionOptions.
type session struct {
	Catalog string `json:"catalog,omitempty"`
}

// sessionOf reads the session of a call. ok is false if there is a cookie that can't
// be read: another process of the service, or another principal, made it.
func (s *Server) sessionOf(ctx context.Context, p core.Principal) (sess session, ok bool) {
	r := http.Request{Header: http.Header{"Cookie": metadata.ValueFromIncomingContext(ctx, "cookie")}}
	cookie, err := r.Cookie(cookieName)
	if err != nil || cookie.Value == "" {
		return session{}, true
	}
	sealed, err := base64.RawURLEncoding.DecodeString(cookie.Value)
	if err != nil {
		return session{}, false
	}
	plain, ok := s.seal.open(sealSession, p, sealed)
	return sess, ok && json.Unmarshal(plain, &sess) == nil
}

// source finds the data source of a call.
func (s *Server) source(ctx context.Context, p core.Principal) (string, error) {
	if name := header(ctx, HeaderSource); name != "" {
		return name, nil
	}
	sess, ok := s.sessionOf(ctx, p)
	switch {
	case !ok:
		return "", errs.New(errs.Invalid, "the session is not known to this process of the service").
			WithStep(errs.StepAdmit).WithHint("connect again")
	case sess.Catalog == "":
		return "", errs.New(errs.Invalid, "the call names no data source").
			WithStep(errs.StepAdmit).WithHint("send the gRPC header %s, or set the session option %s to its name", HeaderSource, optionCatalog)
	}
	return sess.Catalog, nil
}

// class finds the query class of a call.
func class(ctx context.Context) (core.QueryClass, error) {
	switch c := core.QueryClass(header(ctx, HeaderClass)); c {
	case "", core.ClassInteractive, core.ClassRefresh:
		return c, nil
	default:
		return "", errs.New(errs.Invalid, "the header %s is %q: it may be interactive or refresh", HeaderClass, string(c)).WithStep(errs.StepAdmit)
	}
}

// setSession sends the session's cookie; nil ends the session.
func (s *Server) setSession(stream flight.FlightService_DoActionServer, p core.Principal, sess *session) error {
	cookie := http.Cookie{Name: cookieName, MaxAge: -1}
	if sess != nil {
		plain, err := json.Marshal(sess)
		if err != nil {
			return err
		}
		cookie = http.Cookie{Name: cookieName, Value: base64.RawURLEncoding.EncodeToString(s.seal.seal(sealSession, p, plain))}
	}
	return stream.SetHeader(metadata.Pairs("set-cookie", cookie.String()))
}

func (s *Server) setSessionOptions(stream flight.FlightService_DoActionServer, body []byte) error {
	var req pb.SetSessionOptionsRequest
	p, err := s.begin(stream.Context(), body, &req)
	if err != nil {
		return err
	}
	sess, _ := s.sessionOf(stream.Context(), p) // one that can't be read is begun anew
	failed := map[string]*pb.SetSessionOptionsResult_Error{}
	for name, value := range req.GetSessionOptions() {
		if code := s.setOption(stream.Context(), &sess, name, value); code != nil {
			failed[name] = code
		}
	}
	if err := s.setSession(stream, p, &sess); err != nil {
		return err
	}
	return sendResult(stream, &pb.SetSessionOptionsResult{Errors: failed})
}

// setOption sets one option, or says why not.
func (s *Server) setOption(ctx context.Context, sess *session, name string, value *pb.SessionOptionValue) *pb.SetSessionOptionsResult_Error {
	if !strings.EqualFold(name, optionCatalog) {
		return &pb.SetSessionOptionsResult_Error{Value: pb.SetSessionOptionsResult_INVALID_NAME}
	}
	switch v := value.GetOptionValue().(type) {
	case nil:
		sess.Catalog = ""
		return nil
	case *pb.SessionOptionValue_StringValue:
		if v.StringValue != "" {
			if _, err := s.f.Get(ctx, string(core.KindDataSource), v.StringValue); err != nil {
				return &pb.SetSessionOptionsResult_Error{Value: pb.SetSessionOptionsResult_INVALID_VALUE}
			}
		}
		sess.Catalog = v.StringValue
		return nil
	}
	return &pb.SetSessionOptionsResult_Error{Value: pb.SetSessionOptionsResult_INVALID_VALUE}
}

func (s *Server) getSessionOptions(stream flight.FlightService_DoActionServer, body []byte) error {
	p, err := s.begin(stream.Context(), body, &pb.GetSessionOptionsRequest{})
	if err != nil {
		return err
	}
	out := &pb.GetSessionOptionsResult{SessionOptions: map[string]*pb.SessionOptionValue{}}
	if sess, ok := s.sessionOf(stream.Context(), p); ok && sess.Catalog != "" {
		out.SessionOptions[optionCatalog] = &pb.SessionOptionValue{OptionValue: &pb.SessionOptionValue_StringValue{StringValue: sess.Catalog}}
	}
	return sendResult(stream, out)
}

func (s *Server) closeSession(stream flight.FlightService_DoActionServer, body []byte) error {
	p, err := s.begin(stream.Context(), body, &pb.CloseSessionRequest{})
	if err != nil {
		return err
	}
	if err := s.setSession(stream, p, nil); err != nil {
		return err
	}
	return sendResult(stream, &pb.CloseSessionResult{Status: pb.CloseSessionResult_CLOSED})
}
