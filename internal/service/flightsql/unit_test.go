package flightsql

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// len counts the statements of all principals.
func (r *registry) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, o := range r.owners {
		n += len(o.byID)
	}
	return n
}

func newServer(t testing.TB) *Server {
	t.Helper()
	s, err := New(Options{Frontend: frontendtest.New(), Logger: discard(), Version: "x", Key: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPreparedStatementsAreBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := newRegistry(time.Hour, func() time.Time { return now })
	a, b := frontendtest.Admin, frontendtest.Other
	first := r.add(a, statement{sql: "first"})
	if _, err := r.get(b, first); errs.ClassOf(err) != errs.NotFound {
		t.Errorf("another principal's handle: %v", err)
	}
	kept := r.add(a, statement{sql: "kept"})
	theirs := r.add(b, statement{sql: "theirs"})
	for range maxPrepared + 10 {
		r.add(a, statement{sql: "leak"})
		if _, err := r.get(a, kept); err != nil {
			t.Fatal("a statement in use was forgotten")
		}
	}
	if _, err := r.get(a, first); err == nil {
		t.Error("nothing is forgotten")
	}
	if _, err := r.get(b, theirs); err != nil {
		t.Error("one principal's leak costs another's statement")
	}
	for range 10 {
		if err := r.bind(a, r.add(a, statement{}), make([]byte, 15<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.owners[a].bytes; n > maxPreparedBytes {
		t.Errorf("%d bytes are held", n)
	}
	now = now.Add(59 * time.Minute)
	if _, err := r.get(b, theirs); err != nil {
		t.Error(err)
	}
	now = now.Add(61 * time.Minute)
	if _, err := r.get(b, theirs); errs.ClassOf(err) != errs.NotFound || len(r.owners) != 0 {
		t.Errorf("after an idle hour: %v, %d owners", err, len(r.owners))
	}
}

func TestCancelledTicketsAreBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := newRunning(func() time.Time { return now })
	for i := range maxCancelled + 50 {
		if ok := r.cancel(fmt.Sprint(i), now.Add(time.Minute)); ok != (i < maxCancelled) {
			t.Fatalf("ticket %d: %v", i, ok)
		}
	}
	if len(r.refused) > maxCancelled {
		t.Errorf("%d tickets", len(r.refused))
	}
	now = now.Add(2 * time.Minute)
	r.cancel("late", now.Add(time.Minute))
	if len(r.refused) != 1 {
		t.Errorf("%d tickets after they expired", len(r.refused))
	}
}

func TestEveryClassHasACode(t *testing.T) {
	for _, c := range []errs.Class{
		errs.Invalid, errs.Unauthenticated, errs.Denied, errs.NotFound, errs.Conflict, errs.Exhausted,
		errs.Unavailable, errs.Timeout, errs.Cancelled, errs.Source, errs.StorageFull,
	} {
		if codeOf(c) == codes.Internal || codeOf(c) == codes.OK {
			t.Errorf("%s: %s", c, codeOf(c))
		}
	}
	st := status.Convert(statusOf(errs.New(errs.Source, "boom").WithHint("duck")))
	if st.Code() != codes.Unknown || st.Message() != "boom\nhint: duck" {
		t.Errorf("%v", st)
	}
	if st := status.Convert(statusOf(context.DeadlineExceeded)); st.Code() != codes.DeadlineExceeded {
		t.Errorf("%v", st)
	}
}

func TestTrailersAreSmallAndASCII(t *testing.T) {
	err := errs.New(errs.Source, "%s", strings.Repeat("ü🙂", 5000)).WithHint("%s", strings.Repeat("x", 50000))
	if st := status.Convert(statusOf(err)); len(st.Message()) > 2*maxText+20 {
		t.Errorf("a status of %d bytes", len(st.Message()))
	}
	md := errorTrailer(err)
	doc := md.Get(TrailerError)[0]
	if len(doc) > 7000 {
		t.Errorf("%d bytes", len(doc))
	}
	for _, r := range doc {
		if r < ' ' || r > '~' {
			t.Fatalf("%q in a trailer", r)
		}
	}
}

// TestSessions covers what clients do to their cookie.
func TestSessions(t *testing.T) {
	s := newServer(t)
	with := func(cookie string) context.Context {
		return metadata.NewIncomingContext(t.Context(), metadata.Pairs("cookie", cookie))
	}
	for _, cookie := range []string{"", "a=b", cookieName + "=", cookieName + "=***", cookieName + "=AAAA", "=;=;\x00"} {
		if name, err := s.source(with(cookie), frontendtest.Admin); err == nil || name != "" {
			t.Errorf("%q: source %q", cookie, name)
		}
	}
}

func FuzzTicket(f *testing.F) {
	s, err := New(Options{Frontend: frontendtest.New(), Logger: discard(), Version: "x", Key: make([]byte, 32)})
	if err != nil {
		f.Fatal(err)
	}
	good, err := s.issue(frontendtest.Admin, ticket{ID: "t", SQL: "select 1", Source: "orders", Expires: time.Now().Add(time.Hour)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := s.redeem(frontendtest.Admin, raw)
		if err == nil && got.SQL != "select 1" {
			t.Errorf("a forged ticket was taken: %+v", got)
		}
		if err != nil && errs.ClassOf(err) != errs.NotFound {
			t.Errorf("%v", err)
		}
		if _, err := s.redeem(frontendtest.Other, raw); err == nil {
			t.Error("another principal's ticket was taken")
		}
		_, _ = parseCommand(raw)
		ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("cookie", cookieName+"="+string(raw), "authorization", string(raw)))
		if sess, ok := s.sessionOf(ctx, frontendtest.Admin); ok && sess.Catalog != "" {
			t.Errorf("a forged session was taken: %+v", sess)
		}
		_ = tokenFrom(ctx)
	})
}

// ended is a DoPut stream that has nothing more.
type ended struct{}

func (ended) Context() context.Context          { return context.Background() }
func (ended) Recv() (*flight.FlightData, error) { return nil, io.EOF }

func FuzzParams(f *testing.F) {
	stream := frontendtest.Numbers(1, 2)
	f.Add(stream[8:200], stream[200:])
	f.Fuzz(func(t *testing.T, head, body []byte) {
		params, err := readParams(ended{}, &flight.FlightData{DataHeader: head, DataBody: body})
		if err != nil && errs.ClassOf(err) != errs.Invalid && errs.ClassOf(err) != errs.Exhausted {
			t.Errorf("%v", err)
		}
		if err == nil && len(params) > maxParams+64 {
			t.Errorf("%d bytes", len(params))
		}
	})
}

func TestKeyMustBeAKey(t *testing.T) {
	if _, err := New(Options{Frontend: frontendtest.New(), Logger: discard(), Key: []byte("short")}); err == nil {
		t.Error("a short key was taken")
	}
	a, b := newServer(t), newServer(t)
	p := core.Principal{Tenant: "t", Name: "n"}
	raw, err := a.issue(p, ticket{ID: "1", Expires: time.Now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.redeem(p, raw); err != nil {
		t.Errorf("a replica with the same key refuses the ticket: %v", err)
	}
	if binding("a", core.Principal{Tenant: "b", Name: "c"}) == nil || string(binding("x", core.Principal{Tenant: "a,b"})) == string(binding("x", core.Principal{Tenant: "a", Name: "b"})) {
		t.Error("bindings collide")
	}
}

// again is a DoPut stream that never ends.
type again struct{ msg *flight.FlightData }

func (again) Context() context.Context            { return context.Background() }
func (a again) Recv() (*flight.FlightData, error) { return a.msg, nil }

func TestParametersAreBounded(t *testing.T) {
	msg := &flight.FlightData{DataHeader: []byte("header"), DataBody: make([]byte, 1<<20)}
	if _, err := readParams(again{msg}, msg); errs.ClassOf(err) != errs.Exhausted {
		t.Errorf("%v", err)
	}
}
