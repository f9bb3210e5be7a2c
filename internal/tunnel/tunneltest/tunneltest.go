// Package tunneltest wires whole tunnels over loopback for tests: member's agent, host's
// relay, the service's ingress and hub, with a real certificate authority and real
// TLS. Its parts can be stopped, started and looked at while they run.
//
// Tests of any package may use it; programs may not.
package tunneltest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/ingress"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/splice"
	"github.com/sluice-gateway/sluice/internal/tunnel"
	"github.com/sluice-gateway/sluice/internal/tunnel/relay"
)

// Member and Generation are who the harness's member is.
const (
	Member     = "m-1"
	Generation = 7
)

// Patience bounds every wait of the harness.
const Patience = 60 * time.Second

// Options of StartWith; the zero value serves 404.
type Options struct {
	Handler http.Handler
	Hub     tunnel.HubOptions
	CA      identity.CAOptions
	Parked  int
	// Via, given the service's address, returns the address that the relay dials in its
	// place: the test stands in between. Default: none.
	Via     func(service string) string
	OnState func(tunnel.State)
	// NoRelay lets the agent dial the service itself.
	NoRelay bool
	Logger  *slog.Logger // Default: the test's log
}

// Harness is a running tunnel.
type Harness struct {
	*Service
	*Relay
	Keeper       *identity.Keeper
	Agent        *tunnel.Agent
	AgentDone    <-chan error // gets the result of the agent's Run
	RoundTripper http.RoundTripper

	StopAgent context.CancelFunc // breaks the agent; AgentDone tells when it is over
}

// Start runs a tunnel to handler and waits until it is up. Everything ends with the test.
func Start(t testing.TB, handler http.Handler) *Harness {
	t.Helper()
	return StartWith(t, Options{Handler: handler})
}

// StartWith is Start with options.
func StartWith(t testing.TB, o Options) *Harness {
	t.Helper()
	if o.Logger == nil {
		o.Logger = Logger(t)
	}
	if o.Handler == nil {
		o.Handler = http.NotFoundHandler()
	}
	h := &Harness{Service: StartService(t, o)}
	to := h.Service.Addr
	if o.Via != nil {
		to = o.Via(to)
	}
	if !o.NoRelay {
		h.Relay = NewRelay(t, to, o.Logger)
		to = h.Relay.Addr
		h.Relay.Start()
	}
	h.Keeper = h.Service.Join(t, to, Member, Generation)
	h.run(t, to, o)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := h.Hub.WaitUp(ctx, Member, Generation); err != nil {
		t.Fatalf("the tunnel does not come up: %v", err)
	}
	rt, err := h.Hub.RoundTripper(Member, Generation)
	if err != nil {
		t.Fatal(err)
	}
	h.RoundTripper = rt
	return h
}

// run starts the agent.
func (h *Harness) run(t testing.TB, to string, o Options) {
	t.Helper()
	agent, err := tunnel.NewAgent(tunnel.AgentOptions{
		Dial: dialer(to), TLS: h.Keeper.TLSConfig, Handler: o.Handler, Parked: o.Parked,
		Version: "test", OnState: o.OnState, Logger: o.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	result, over := make(chan error, 1), make(chan struct{})
	go func() { result <- agent.Run(ctx); close(over) }()
	h.Agent, h.AgentDone, h.StopAgent = agent, result, cancel
	t.Cleanup(func() { cancel(); wait(t, over, "the agent does not end") })
}

// Client is an HTTP client to the member.
func (h *Harness) Client() *http.Client { return &http.Client{Transport: h.RoundTripper} }

// Service is the service's side: ingress and hub, and who is welcome.
type Service struct {
	CA   *identity.CA
	Hub  *tunnel.Hub
	Addr string

	mu     sync.Mutex
	tokens map[string]identity.Subject // one-time tokens that were not used yet
	banned map[identity.Subject]error
	hosts  func(ctx context.Context, s identity.Subject, c net.Conn)
}

// StartService runs a service.
func StartService(t testing.TB, o Options) *Service {
	t.Helper()
	if o.Logger == nil {
		o.Logger = Logger(t)
	}
	ca, err := identity.OpenCA(t.TempDir(), o.CA)
	if err != nil {
		t.Fatal(err)
	}
	o.Hub.Logger = o.Logger
	s := &Service{
		CA: ca, Hub: tunnel.NewHub(o.Hub),
		tokens: map[string]identity.Subject{}, banned: map[identity.Subject]error{},
	}
	srv, err := ingress.New(ingress.Options{
		CA: ca, Hub: s.Hub, Join: s.join, Authorize: s.authorize, Host: s.host, Logger: o.Logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	ln := listen(t)
	s.Addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := srv.Serve(ctx, ln); err != nil {
			t.Errorf("ingress: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		wait(t, over, "the ingress does not end")
		s.Hub.Close()
	})
	return s
}

// AddToken makes a one-time token known.
func (s *Service) AddToken(token string, subject identity.Subject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = subject
}

// Ban makes the service refuse a subject with an error; nil lifts it.
func (s *Service) Ban(subject identity.Subject, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.banned[subject] = err
}

// OnHost sets what serves hosts' connections.
func (s *Service) OnHost(f func(ctx context.Context, s identity.Subject, c net.Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts = f
}

func (s *Service) join(_ context.Context, req memberapi.JoinRequest) (identity.Subject, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	subject, ok := s.tokens[req.Token]
	if !ok {
		return identity.Subject{}, errs.New(errs.Unauthenticated, "the token is unknown or was used")
	}
	delete(s.tokens, req.Token)
	return subject, nil
}

func (s *Service) authorize(_ context.Context, subject identity.Subject) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.banned[subject]
}

func (s *Service) host(ctx context.Context, subject identity.Subject, c net.Conn) {
	s.mu.Lock()
	f := s.hosts
	s.mu.Unlock()
	if f != nil {
		f(ctx, subject, c)
	}
}

// Join gets an identity for a member by way of an address.
func (s *Service) Join(t testing.TB, via, member string, generation int64) *identity.Keeper {
	t.Helper()
	token := "token-of-" + member
	s.AddToken(token, identity.Subject{Role: memberapi.RoleMember, Name: member, Generation: generation})
	k, err := identity.New(identity.KeeperOptions{
		Role: memberapi.RoleMember, Name: member, Token: core.NewSecret(token),
		CAPEM: s.CA.CertPEM(), Dial: dialer(via), JoinTimeout: Patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := k.Join(ctx); err != nil {
		t.Fatal(err)
	}
	return k
}

// Relay is a host's relay that can be stopped and started on one address.
type Relay struct {
	Addr string

	t    testing.TB
	to   string
	log  *slog.Logger
	ln   *net.TCPListener
	cur  *relay.Relay
	stop func()
}

// NewRelay makes a relay to a service's address; Start runs it.
func NewRelay(t testing.TB, to string, log *slog.Logger) *Relay {
	ln := listen(t)
	r := &Relay{t: t, to: to, log: log, ln: ln, Addr: ln.Addr().String()}
	t.Cleanup(r.Kill)
	return r
}

// Start runs the relay, or runs it again after Kill.
func (r *Relay) Start() {
	r.t.Helper()
	if r.ln == nil {
		addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(r.Addr))
		ln, err := net.ListenTCP("tcp", addr)
		if err != nil {
			r.t.Fatal(err)
		}
		r.ln = ln
	}
	dial := dialer(r.to)
	splicer := splice.Local(r.log)
	cur, err := relay.New(relay.Options{
		Listener: r.ln,
		Dial: func(ctx context.Context) (*net.TCPConn, error) {
			c, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return c.(*net.TCPConn), nil
		},
		Known:   func(a netip.Addr) bool { return a.IsLoopback() },
		Splicer: splicer,
		Logger:  r.log,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { defer close(over); _ = cur.Run(ctx) }()
	r.cur = cur
	r.stop = func() { cancel(); wait(r.t, over, "the relay does not end"); splicer.Close() }
}

// Stats of the running relay, summed.
func (r *Relay) Stats() relay.Stats {
	r.t.Helper()
	var sum relay.Stats
	all, err := r.cur.Stats(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range all {
		sum.Open += s.Open
		sum.Accepted += s.Accepted
		sum.Refused += s.Refused
		sum.ToService += s.ToService
		sum.ToMember += s.ToMember
	}
	return sum
}

// Kill ends the relay and every connection through it.
func (r *Relay) Kill() {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
	if r.ln != nil {
		_ = r.ln.Close()
		r.ln = nil
	}
}

func dialer(addr string) func(ctx context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

func listen(t testing.TB) *net.TCPListener {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func wait(t testing.TB, over <-chan struct{}, complaint string) {
	t.Helper()
	select {
	case <-over:
	case <-time.After(Patience):
		t.Error(complaint)
	}
}

// Logger writes to the test's log in verbose runs, and nowhere otherwise.
func Logger(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	var w io.Writer = testWriter{t}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}
