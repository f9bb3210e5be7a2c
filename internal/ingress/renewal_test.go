package ingress_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

// onTime runs a service and a member with a certificate for an hour, and returns what makes
// time go by for both.
func onTime(t *testing.T) (s *tunneltest.Service, k *identity.Keeper, goOn func(time.Duration)) {
	t.Helper()
	var ahead atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s = tunneltest.StartService(t, tunneltest.Options{CA: identity.CAOptions{MemberLifetime: time.Hour, Clock: clock}})
	s.AddToken("token", member("m-1", 1))
	k = keeper(t, s, func(o *identity.KeeperOptions) { o.Clock = clock })
	if err := k.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, k, func(d time.Duration) { ahead.Add(int64(d)) }
}

// TestExpiredCertificate covers the resumed session, too: it carries the old certificate.
func TestExpiredCertificate(t *testing.T) {
	t.Parallel()
	s, k, goOn := onTime(t)
	cfg := k.TLSConfig(memberapi.ProtoData)
	for range 2 { // the second one resumes
		if err := closedByService(t, s, cfg); !isTimeout(err) {
			t.Fatalf("before its end: %v", err)
		}
	}
	goOn(time.Hour + time.Second)
	for name, cfg := range map[string]*tls.Config{"resumed": cfg, "new": func() *tls.Config {
		c := cfg.Clone()
		c.ClientSessionCache = nil
		return c
	}()} {
		if err := closedByService(t, s, cfg); err == nil || isTimeout(err) {
			t.Errorf("%s, after its end: %v, want a refusal", name, err)
		}
	}
	if err := agentOf(t, s, k).Run(t.Context()); errs.ClassOf(err) != errs.Denied {
		t.Errorf("agent: %v, want Denied", err)
	}
	if err := k.Run(t.Context()); errs.ClassOf(err) != errs.Unauthenticated {
		t.Errorf("keeper: %v, want Unauthenticated", err)
	}
	select {
	case <-k.Expired():
	default:
		t.Error("Expired is not closed")
	}
}

func TestRenewalWhileConnected(t *testing.T) {
	t.Parallel()
	h := tunneltest.StartWith(t, tunneltest.Options{
		CA: identity.CAOptions{MemberLifetime: 6 * time.Second},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, r.Body)
		}),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Keeper.Run(ctx) }()
	first := h.Keeper.NotAfter()
	key := h.Keeper.TLSConfig("x").Certificates[0].PrivateKey
	// Renewed twice, and past the first one's end.
	for end := time.Now().Add(patience); !time.Now().After(first) || h.Keeper.NotAfter().Sub(first) < 7*time.Second; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in %v the certificate's end moved by %s", patience, h.Keeper.NotAfter().Sub(first))
		}
		resp, err := h.Client().Post("http://member/", "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatalf("a renewal must not be felt: %v", err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "x" {
			t.Fatalf("%q, %v", body, err)
		}
	}
	if h.Keeper.TLSConfig("x").Certificates[0].PrivateKey == key {
		t.Error("the key stayed the same")
	}
	// New connections with the renewed identity are accepted long after the first one ended.
	h.Relay.Kill()
	h.Relay.Start()
	up, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	for {
		resp, err := h.Client().Post("http://member/", "text/plain", strings.NewReader("x"))
		if err == nil {
			resp.Body.Close()
			break
		}
		if up.Err() != nil {
			t.Fatalf("after a reconnect: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("keeper: %v", err)
	}
}

// TestClientsWithOtherClocks: a client's clock may be wrong, by days if it is behind. It renews
// when the service wants it to, not when its own clock says that the certificate ends.
func TestClientsWithOtherClocks(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{
		"minutes ahead": 10 * time.Minute, "hours ahead": 12 * time.Hour, "minutes behind": -10 * time.Minute, "weeks behind": -40 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := tunneltest.StartService(t, tunneltest.Options{CA: identity.CAOptions{MemberLifetime: 6 * time.Second}})
			s.AddToken("token", member("m-1", 1))
			k := keeper(t, s, func(o *identity.KeeperOptions) {
				o.Clock = func() time.Time { return time.Now().Add(off) }
			})
			begun := time.Now()
			if err := k.Join(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- k.Run(ctx) }()
			first := k.NotAfter()
			for k.NotAfter().Equal(first) && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			took := time.Since(begun)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if least := 3 * time.Second; took < least || took >= patience { // at two thirds, of whole seconds
				t.Errorf("it was renewed after %v, want at least %v", took, least)
			}
		})
	}
}

func TestRenewalIsRefusedForGood(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{CA: identity.CAOptions{MemberLifetime: 6 * time.Second}})
	k := s.Join(t, s.Addr, "m-1", 1)
	s.Ban(member("m-1", 1), errs.New(errs.NotFound, "member m-1 is no longer there"))
	began := time.Now()
	if err := k.Run(t.Context()); errs.ClassOf(err) != errs.Denied {
		t.Errorf("err = %v, want Denied", err)
	}
	if time.Since(began) > 5900*time.Millisecond {
		t.Error("it went on trying to the end, although the answer was no")
	}
	<-k.Expired()
}

func TestRenewalSurvivesAServiceThatIsAway(t *testing.T) {
	t.Parallel()
	s := tunneltest.StartService(t, tunneltest.Options{CA: identity.CAOptions{MemberLifetime: 9 * time.Second}})
	s.AddToken("token", member("m-1", 1))
	var away atomic.Bool
	k := keeper(t, s, func(o *identity.KeeperOptions) {
		o.JoinTimeout = patience
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			if away.Load() {
				return nil, errors.New("no route to host")
			}
			return dialer(s.Addr)(ctx)
		}
	})
	if err := k.Join(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := k.NotAfter()
	away.Store(true)
	time.AfterFunc(6500*time.Millisecond, func() { away.Store(false) }) // it is due after 6 s
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	for end := time.Now().Add(patience); !k.NotAfter().After(first) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !k.NotAfter().After(first) {
		t.Error("not renewed")
	}
}

// TestRenewOnAConnectionOlderThanItsCertificate: the handshake was in time, the request is not.
func TestRenewOnAConnectionOlderThanItsCertificate(t *testing.T) {
	t.Parallel()
	s, k, goOn := onTime(t)
	conn, err := session(t, s, k.TLSConfig(memberapi.ProtoHTTP))
	if err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(conn)
	post := func(path string) int {
		io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\n{}")
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	// A client is through with its handshake before the service has looked at its certificate;
	// an answer shows that it has.
	if got := post("/nowhere"); got != http.StatusNotFound {
		t.Fatalf("status %d, want 404", got)
	}
	goOn(time.Hour + time.Second)
	if got := post(memberapi.PathRenew); got != http.StatusUnauthorized {
		t.Errorf("status %d, want 401", got)
	}
}
