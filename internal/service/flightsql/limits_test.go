package flightsql

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	driver "github.com/apache/arrow-adbc/go/adbc/driver/flightsql"
	"google.golang.org/grpc/codes"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

func TestSlowClientHoldsTheResultBack(t *testing.T) {
	front := frontendtest.New()
	front.On("long", frontendtest.Long(4000, 10000)) // about 800 MB
	_, addr := serve(t, front, nil)
	c := client(t, addr)
	ctx, cancel := context.WithCancel(outgoing(t))
	info, err := c.Execute(ctx, "long")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := c.Client.DoGet(ctx, info.Endpoint[0].Ticket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if n := front.Settled(); n > 4<<20 {
		t.Errorf("%d bytes were read for a client that reads none", n)
	}
	cancel()
	if !front.WaitClosed(30 * time.Second) {
		t.Error("the query goes on")
	}
}

func TestStalledClientLosesItsQuery(t *testing.T) {
	front := frontendtest.New()
	front.On("long", frontendtest.Long(4000, 10000))
	_, addr := serve(t, front, func(o *Options) { o.StallTimeout = 200 * time.Millisecond })
	c := client(t, addr)
	info, err := c.Execute(outgoing(t), "long")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := c.Client.DoGet(outgoing(t), info.Endpoint[0].Ticket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if !front.WaitClosed(30 * time.Second) {
		t.Fatal("a client that takes nothing keeps its query")
	}
	for err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, "the stalled result", err, codes.Canceled)
}

func TestStreamsAreCapped(t *testing.T) {
	front := frontendtest.New()
	hang := frontendtest.Long(1, 1)
	hang.Tail, hang.Block = nil, true
	front.On("hang", hang)
	_, addr := serve(t, front, func(o *Options) { o.MaxStreams = 3 })
	c := client(t, addr)
	info, err := c.Execute(outgoing(t), "hang")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(outgoing(t))
	defer cancel()
	for range 3 {
		r, err := c.DoGet(ctx, info.Endpoint[0].Ticket)
		if err != nil || !r.Next() {
			t.Fatalf("no rows: %v", err)
		}
		defer r.Release()
	}
	bounded, stop := context.WithTimeout(outgoing(t), 60*time.Second)
	defer stop()
	_, err = drain(bounded, c, info.Endpoint[0].Ticket)
	wantCode(t, "one too many", err, codes.ResourceExhausted)
	cancel()
	if !front.WaitClosed(30 * time.Second) {
		t.Fatal("the queries go on")
	}
}

func TestServeCutsOffAtTheEndOfTheGrace(t *testing.T) {
	front := frontendtest.New()
	hang := frontendtest.Long(1, 1)
	hang.Tail, hang.Block = nil, true
	front.On("hang", hang)
	s, err := New(Options{Frontend: front, Logger: discard(), Version: "x", Grace: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	c := client(t, l.Addr().String())
	info, err := c.Execute(outgoing(t), "hang")
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.DoGet(outgoing(t), info.Endpoint[0].Ticket)
	if err != nil || !r.Next() {
		t.Fatalf("no rows: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if front.Open() != 0 {
		t.Error("Serve returned before the query had ended")
	}
	for r.Next() {
	}
	if r.Err() == nil {
		t.Error("the cut result reads as whole")
	}
	r.Release()
}

func TestPanicsStayInTheirCall(t *testing.T) {
	front := frontendtest.New()
	_, addr := serve(t, front, nil)
	front.On("null", frontendtest.Answer{Err: (*errs.Error)(nil)})
	front.On("panic", frontendtest.Answer{Panic: true})
	c := client(t, addr)
	for _, sql := range []string{"null", "panic"} {
		info, err := c.Execute(outgoing(t), sql)
		if err != nil {
			t.Fatal(err)
		}
		_, err = drain(outgoing(t), c, info.Endpoint[0].Ticket)
		wantCode(t, sql, err, codes.Internal)
		_, err = c.GetExecuteSchema(outgoing(t), sql)
		wantCode(t, sql+", unary", err, codes.Internal)
	}
	if _, err := c.Execute(outgoing(t), "select"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestTLS(t *testing.T) {
	certFile, keyFile, roots := frontendtest.WriteCert(t)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	front := frontendtest.New()
	front.On("numbers", frontendtest.Whole(frontendtest.Numbers(2, 3)))
	_, addr := serve(t, front, func(o *Options) { o.TLS = &tls.Config{Certificates: []tls.Certificate{cert}} })
	options := source("orders")
	options[adbc.OptionKeyURI], options[driver.OptionSSLRootCerts] = "grpc+tls://"+addr, string(roots)
	if err := query(t, connect(t, addr, options), "numbers", frontendtest.Numbers(2, 3)); err != nil {
		t.Error(err)
	}
	c := client(t, addr) // in the clear
	ctx, cancel := context.WithTimeout(outgoing(t), 3*time.Second)
	defer cancel()
	if _, err := c.Execute(ctx, "numbers"); err == nil {
		t.Error("a call in the clear was answered")
	}
}
