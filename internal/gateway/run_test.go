package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

// member is a running gateway behind a real service's tunnel.
type member struct {
	client *http.Client
	stop   context.CancelFunc // as SIGTERM does
	done   chan error
}

const token = "the-one-time-token"

func bootOf(s *tunneltest.Service, relay string) memberapi.Boot {
	return memberapi.Boot{
		Member: tunneltest.Member, Generation: tunneltest.Generation, Relay: relay,
		ServiceName: identity.ServiceName, ServiceCA: string(s.CA.CertPEM()), JoinToken: token, Parked: 2,
	}
}

func startMember(t *testing.T, fake *fakeSource, log *slog.Logger, change ...func(*Options)) member {
	t.Helper()
	service := tunneltest.StartService(t, tunneltest.Options{})
	relay := tunneltest.NewRelay(t, service.Addr, tunneltest.Logger(t))
	relay.Start()
	service.AddToken(token, identity.Subject{Role: memberapi.RoleMember, Name: tunneltest.Member, Generation: tunneltest.Generation})
	ctx, cancel := context.WithCancel(context.Background())
	m := member{stop: cancel, done: make(chan error, 1)}
	opts := Options{
		Boot: bootOf(service, relay.Addr), Logger: log, Version: "test",
		Lookup: func(name string) (connector.Connector, bool) { return fake, name == "fake" },
	}
	for _, f := range change {
		f(&opts)
	}
	over := make(chan struct{})
	go func() { defer close(over); m.done <- Run(ctx, opts) }()
	t.Cleanup(func() { cancel(); <-over })
	up, cancelUp := context.WithTimeout(ctx, tunneltest.Patience)
	defer cancelUp()
	if err := service.Hub.WaitUp(up, tunneltest.Member, tunneltest.Generation); err != nil {
		t.Fatal(err)
	}
	rt, err := service.Hub.RoundTripper(tunneltest.Member, tunneltest.Generation)
	if err != nil {
		t.Fatal(err)
	}
	m.client = &http.Client{Transport: rt}
	return m
}

func (m member) post(t *testing.T, ctx context.Context, req any) *http.Response {
	t.Helper()
	return postWith(t, ctx, m.client, "http://member"+memberapi.PathQuery, req)
}

func (m member) ended(t *testing.T, within time.Duration) error {
	t.Helper()
	select {
	case err := <-m.done:
		return err
	case <-time.After(within):
		t.Fatalf("Run goes on after %s", within)
		return nil
	}
}

// The whole way but for the host's namespaces: join, tunnel, query, error, drain.
func TestRunThroughTheTunnel(t *testing.T) {
	tunneltest.NoLeak(t)
	var log lockedBuffer
	broken := errs.New(errs.Source, "terminating connection due to administrator command")
	m := startMember(t, selects(func(context.Context) *reader { return batches(100, 10_000, nil) }), slog.New(slog.NewJSONHandler(&log, nil)))
	for range 3 {
		if res := read(m.post(t, t.Context(), query("select 'hunter2'"))); res.err != nil || res.rows != 1_000_000 {
			t.Fatalf("%d rows, %v", res.rows, res.err)
		}
	}
	m.stop()
	if err := m.ended(t, 30*time.Second); err != nil {
		t.Error(err)
	}
	for _, secret := range []string{"hunter2", token} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log tells %q", secret)
		}
	}
	m = startMember(t, selects(func(context.Context) *reader { return batches(30, 10_000, broken) }), slog.New(slog.DiscardHandler))
	if err := read(m.post(t, t.Context(), query("select"))).err; err == nil || err.Error() != broken.Message {
		t.Errorf("got %v", err)
	}
	m.stop()
	_ = m.ended(t, 30*time.Second)
}

// Cancelling at the service reaches the source within 100 ms, through TLS and relay.
func TestRunCancels(t *testing.T) {
	seen := make(chan time.Time, 1)
	m := startMember(t, selects(func(ctx context.Context) *reader {
		return &reader{next: func(i int) (arrow.RecordBatch, error) {
			if i == 0 {
				return numberBatch(0, 10), nil
			}
			<-ctx.Done()
			seen <- time.Now()
			return nil, ctx.Err()
		}}
	}), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	resp := m.post(t, ctx, query("select"))
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	cancel()
	resp.Body.Close()
	select {
	case at := <-seen:
		if d := at.Sub(start); d > 20*time.Second {
			t.Errorf("it took %s", d)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the source never heard of it")
	}
}

func TestRunDrains(t *testing.T) {
	goOn := make(chan struct{})
	var begun atomic.Bool
	m := startMember(t, selects(func(context.Context) *reader {
		return &reader{next: func(i int) (arrow.RecordBatch, error) {
			if i == 0 {
				begun.Store(true)
				<-goOn
				return numberBatch(0, 10), nil
			}
			return nil, nil
		}}
	}), slog.New(slog.DiscardHandler))
	got := make(chan result, 1)
	go func() { got <- read(m.post(t, context.Background(), query("select"))) }()
	waitFor(t, 30*time.Second, begun.Load)
	m.stop()
	select {
	case err := <-m.done:
		t.Fatalf("Run ended under a request: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	close(goOn)
	if res := <-got; res.err != nil || res.rows != 10 {
		t.Errorf("%d rows, %v", res.rows, res.err)
	}
	if err := m.ended(t, 30*time.Second); err != nil {
		t.Error(err)
	}
}

func TestRunDrainIsBounded(t *testing.T) {
	var begun atomic.Bool
	m := startMember(t, selects(func(ctx context.Context) *reader {
		return &reader{next: func(int) (arrow.RecordBatch, error) {
			begun.Store(true)
			<-ctx.Done()
			return nil, ctx.Err()
		}}
	}), slog.New(slog.DiscardHandler), func(o *Options) { o.DrainTimeout = 100 * time.Millisecond })
	got := make(chan result, 1)
	go func() { got <- read(m.post(t, context.Background(), query("select"))) }()
	waitFor(t, 30*time.Second, begun.Load)
	m.stop()
	if err := m.ended(t, 30*time.Second); err != nil {
		t.Error(err)
	}
	if res := <-got; res.err == nil {
		t.Error("a result that was broken off passes for whole")
	}
}

// A member that the service does not take ends with the reason, at once.
func TestRunIsRefused(t *testing.T) {
	service := tunneltest.StartService(t, tunneltest.Options{})
	subject := identity.Subject{Role: memberapi.RoleMember, Name: tunneltest.Member, Generation: tunneltest.Generation}
	service.AddToken(token, subject)
	service.Ban(subject, errs.New(errs.Denied, "generation 8 runs already"))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	err := Run(ctx, Options{Boot: bootOf(service, service.Addr), Logger: slog.New(slog.DiscardHandler), Lookup: (&fakeSource{}).lookup})
	if errs.ClassOf(err) != errs.Denied {
		t.Errorf("got %v", err)
	}
	boot := bootOf(service, service.Addr)
	boot.ServiceCA = "garbage"
	if err := Run(ctx, Options{Boot: boot, Logger: slog.New(slog.DiscardHandler)}); errs.ClassOf(err) != errs.Invalid {
		t.Errorf("with a broken CA: %v", err)
	}
}

func TestReadBoot(t *testing.T) {
	t.Parallel()
	const good = `{"member":"m-1","generation":3,"relay":"169.254.1.1:8482","serviceCa":"PEM","joinToken":"s3cret","dnsServers":["10.20.0.2:53"],"parked":4}`
	boot, err := ReadBoot(strings.NewReader(good))
	if err != nil || boot.Member != "m-1" || boot.JoinToken != "s3cret" || boot.Parked != 4 {
		t.Errorf("got %+v, %v", boot, err)
	}
	for name, doc := range map[string]string{
		"empty":    "",
		"cut":      good[:len(good)-2],
		"no token": strings.Replace(good, "joinToken", "x", 1),
		"no relay": strings.Replace(good, "relay", "x", 1),
		"large":    good + strings.Repeat(" ", maxBoot),
	} {
		_, err := ReadBoot(strings.NewReader(doc))
		var e *errs.Error
		if !errors.As(err, &e) || e.Class != errs.Invalid || strings.Contains(e.Message, "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
