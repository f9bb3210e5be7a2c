package ingress_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/tunnel"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

const patience = tunneltest.Patience

func dialer(addr string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

func member(name string, generation int64) identity.Subject {
	return identity.Subject{Role: memberapi.RoleMember, Name: name, Generation: generation}
}

// keeper makes a keeper that has not joined.
func keeper(t *testing.T, s *tunneltest.Service, change func(*identity.KeeperOptions)) *identity.Keeper {
	t.Helper()
	o := identity.KeeperOptions{
		Role: memberapi.RoleMember, Name: "m-1", Token: core.NewSecret("token"), CAPEM: s.CA.CertPEM(),
		Dial: dialer(s.Addr), JoinTimeout: patience, Logger: tunneltest.Logger(t),
	}
	if change != nil {
		change(&o)
	}
	k, err := identity.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTokenWorksOnce(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	s.AddToken("token", member("m-1", 1))
	if err := keeper(t, s, nil).Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := keeper(t, s, func(o *identity.KeeperOptions) { o.JoinTimeout = 3 * time.Second })
	if err := again.Join(t.Context()); errs.ClassOf(err) != errs.Unauthenticated {
		t.Errorf("the second time: %v, want Unauthenticated", err)
	}
}

// TestJoinThatIsCutOffSaysWhatWasWrong: the last try meets the end of its time, not the refusal.
func TestJoinThatIsCutOffSaysWhatWasWrong(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	var dials atomic.Int32
	k := keeper(t, s, func(o *identity.KeeperOptions) {
		o.JoinTimeout = 5 * time.Second
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			if dials.Add(1) > 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dialer(s.Addr)(ctx)
		}
	})
	if err := k.Join(t.Context()); errs.ClassOf(err) != errs.Unauthenticated {
		t.Errorf("%v, want Unauthenticated", err)
	}
}

func TestTokenOfAnother(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	s.AddToken("token", member("m-2", 1))
	if err := keeper(t, s, nil).Join(t.Context()); errs.ClassOf(err) != errs.Denied {
		t.Errorf("err = %v, want Denied", err)
	}
}

func TestTokenThatComesAMomentLater(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	time.AfterFunc(100*time.Millisecond, func() { s.AddToken("token", member("m-1", 1)) })
	k := keeper(t, s, func(o *identity.KeeperOptions) { o.JoinTimeout = patience })
	if err := k.Join(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestServiceThatComesAMomentLater(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	s.AddToken("token", member("m-1", 1))
	var dials atomic.Int32
	k := keeper(t, s, func(o *identity.KeeperOptions) {
		o.JoinTimeout = patience
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			if dials.Add(1) < 4 {
				return nil, errors.New("connection refused")
			}
			return dialer(s.Addr)(ctx)
		}
	})
	if err := k.Join(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWrongCAIsRefusedByTheClient(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	s.AddToken("token", member("m-1", 1))
	other, err := identity.OpenCA(t.TempDir(), identity.CAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = keeper(t, s, func(o *identity.KeeperOptions) { o.CAPEM = other.CertPEM() }).Join(t.Context())
	var unknown *tls.CertificateVerificationError
	if !errors.As(err, &unknown) {
		t.Errorf("err = %v, want a verification error", err)
	}
	// The token was not given away to whoever answered.
	if err := keeper(t, s, nil).Join(t.Context()); err != nil {
		t.Errorf("the token is used up: %v", err)
	}
}

// session runs a TLS handshake and asks for one byte, which tells what the service thinks.
func session(t *testing.T, s *tunneltest.Service, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	raw, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, cfg)
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	return conn, nil
}

// closedByService reports whether the service ends a connection without a word.
func closedByService(t *testing.T, s *tunneltest.Service, cfg *tls.Config) error {
	t.Helper()
	conn, err := session(t, s, cfg)
	if err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, err = conn.Read(make([]byte, 1))
	return err
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestWhoMaySpeakWhat(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	s.OnHost(func(ctx context.Context, subject identity.Subject, c net.Conn) { <-ctx.Done() })
	m := s.Join(t, s.Addr, "m-1", 1)
	s.AddToken("host-token", identity.Subject{Role: memberapi.RoleHost, Name: "h-1"})
	h := keeper(t, s, func(o *identity.KeeperOptions) {
		o.Role, o.Name, o.Token = memberapi.RoleHost, "h-1", core.NewSecret("host-token")
	})
	if err := h.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	nobody := keeper(t, s, nil)
	for _, c := range []struct {
		who   string
		k     *identity.Keeper
		proto string
		ok    bool
	}{
		{"member", m, memberapi.ProtoData, true},
		{"member", m, memberapi.ProtoControl, true},
		{"member", m, memberapi.ProtoHost, false},
		{"host", h, memberapi.ProtoHost, true},
		{"host", h, memberapi.ProtoData, false},
		{"host", h, memberapi.ProtoControl, false},
		{"nobody", nobody, memberapi.ProtoData, false},
		{"nobody", nobody, memberapi.ProtoControl, false},
		{"nobody", nobody, memberapi.ProtoHost, false},
		{"member", m, "h2", false},
		{"member", m, "", false},
	} {
		t.Run(c.who+" "+c.proto, func(t *testing.T) {
			t.Parallel()
			cfg := c.k.TLSConfig(c.proto)
			if c.proto == "" {
				cfg.NextProtos = nil
			}
			conn, err := session(t, s, cfg)
			if err == nil {
				if c.proto == memberapi.ProtoControl && !c.ok {
					// A refusal is said in answer to a hello.
					conn.Write([]byte("\x00\x00\x00\x02{}"))
					answer, _ := io.ReadAll(conn)
					if !strings.Contains(string(answer), "refused") {
						t.Errorf("answer %q, want a refusal", answer)
					}
					return
				}
				_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
				_, err = conn.Read(make([]byte, 1))
			}
			if isTimeout(err) != c.ok {
				t.Errorf("err = %v, accepted should be %v", err, c.ok)
			}
		})
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	cfg := s.Join(t, s.Addr, "m-1", 1).TLSConfig(memberapi.ProtoData)
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := session(t, s, cfg); err == nil {
		t.Error("TLS 1.2 is accepted")
	}
}

func TestCertificateOfAnotherCAIsRefused(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	evil := tunneltest.StartService(t, tunneltest.Options{})
	cfg := evil.Join(t, evil.Addr, "m-1", 1).TLSConfig(memberapi.ProtoData)
	cfg.RootCAs = s.CA.Pool()
	// A client sends nothing that its server did not ask for: it has to be made to.
	cert := cfg.Certificates[0]
	cfg.Certificates = nil
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	if err := closedByService(t, s, cfg); err == nil || isTimeout(err) {
		t.Errorf("err = %v, want a refusal", err)
	}
}

func TestGenerationThatIsNoLongerLive(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	k := s.Join(t, s.Addr, "m-1", 1)
	if err := closedByService(t, s, k.TLSConfig(memberapi.ProtoData)); !isTimeout(err) {
		t.Fatalf("while it is live: %v", err)
	}
	s.Ban(member("m-1", 1), errs.New(errs.Conflict, "generation 2 of member m-1 is live"))
	if err := closedByService(t, s, k.TLSConfig(memberapi.ProtoData)); err == nil || isTimeout(err) {
		t.Errorf("err = %v, want a refusal", err)
	}
	err := agentOf(t, s, k).Run(t.Context())
	if errs.ClassOf(err) != errs.Denied || !strings.Contains(err.Error(), "generation 2") {
		t.Errorf("agent: %v, want Denied with the service's reason", err)
	}
}

func agentOf(t *testing.T, s *tunneltest.Service, k *identity.Keeper) *tunnel.Agent {
	t.Helper()
	a, err := tunnel.NewAgent(tunnel.AgentOptions{
		Dial: dialer(s.Addr), TLS: k.TLSConfig, Handler: http.NotFoundHandler(), Logger: tunneltest.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func request(t *testing.T, s *tunneltest.Service, k *identity.Keeper, path string, body []byte) (int, errs.Error) {
	t.Helper()
	conn, err := session(t, s, k.TLSConfig(memberapi.ProtoHTTP))
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Post("https://service"+path, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e errs.Error
	_ = json.NewDecoder(resp.Body).Decode(&e)
	return resp.StatusCode, e
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	nobody := keeper(t, s, nil)
	s.AddToken("token", member("m-1", 1))
	doc, _ := json.Marshal(memberapi.JoinRequest{Role: "member", Name: "m-1", Token: "token", CSR: []byte("x")})
	for name, c := range map[string]struct {
		path string
		body []byte
		want int
	}{
		"not JSON":               {memberapi.PathJoin, []byte("{"), 400},
		"too large":              {memberapi.PathJoin, bytes.Repeat([]byte(" "), 1<<20), 400},
		"a broken CSR":           {memberapi.PathJoin, doc, 400},
		"renew without identity": {memberapi.PathRenew, []byte("{}"), 401},
		"another path":           {"/v1/query", []byte("{}"), 404},
	} {
		t.Run(name, func(t *testing.T) {
			status, e := request(t, s, nobody, c.path, c.body)
			if status != c.want || (status != 404 && e.Class == "") {
				t.Errorf("status %d, error %+v, want %d", status, e, c.want)
			}
		})
	}
	// The broken request has not used up the token.
	if err := nobody.Join(t.Context()); err != nil {
		t.Errorf("join: %v", err)
	}
}

// TestSlowHandshakesDoNotStopTheOthers: connections that say nothing are bounded in
// number and time, and the rest is served.
func TestSlowHandshakesDoNotStopTheOthers(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	for range 64 {
		c, err := net.Dial("tcp", s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	began := time.Now()
	s.Join(t, s.Addr, "m-1", 1)
	if d := time.Since(began); d > 9*time.Second { // a silent one is cut off after 10
		t.Errorf("a join among 64 silent connections took %s", d)
	}
}

// TestSlowHandshakesOfOneSource: one address that fills every slot it can get, and more,
// does not stop another.
func TestSlowHandshakesOfOneSource(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	hostile := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	for range 300 {
		c, err := hostile.DialContext(t.Context(), "tcp", s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	began := time.Now()
	s.Join(t, s.Addr, "m-1", 1)
	if d := time.Since(began); d > 9*time.Second { // a silent one is cut off after 10
		t.Errorf("a join beside 300 silent connections of one address took %s", d)
	}
}

// TestHubClosesWhileConnectionsSayNothing: closing the hub waits for nobody's hello.
func TestHubClosesWhileConnectionsSayNothing(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{})
	k := s.Join(t, s.Addr, "m-1", 1)
	for _, proto := range []string{memberapi.ProtoControl, memberapi.ProtoData} {
		if _, err := session(t, s, k.TLSConfig(proto)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	s.Hub.Close()
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("it took %s", d)
	}
}

func TestStopLeavesNothing(t *testing.T) {
	tunneltest.NoLeak(t)
	s := tunneltest.StartService(t, tunneltest.Options{})
	s.OnHost(func(ctx context.Context, subject identity.Subject, c net.Conn) { io.Copy(io.Discard, c) })
	k := s.Join(t, s.Addr, "m-1", 1)
	for _, proto := range []string{memberapi.ProtoData, memberapi.ProtoControl, memberapi.ProtoHTTP} {
		if _, err := session(t, s, k.TLSConfig(proto)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := net.Dial("tcp", s.Addr); err != nil { // never handshakes
		t.Fatal(err)
	}
}
