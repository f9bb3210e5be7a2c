package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/tunnel"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

// happenings gathers what the hub calls back.
type happenings struct {
	ups   chan int64
	downs chan error
}

func newHappenings() *happenings {
	return &happenings{ups: make(chan int64, 32), downs: make(chan error, 32)}
}

func (h *happenings) options() tunnel.HubOptions {
	return tunnel.HubOptions{
		OnUp:           func(_ string, generation int64) { h.ups <- generation },
		OnDown:         func(_ string, _ int64, reason error) { h.downs <- reason },
		HeartbeatEvery: 50 * time.Millisecond, HeartbeatTimeout: 2 * time.Second,
		Grace: 300 * time.Millisecond,
	}
}

// soon receives from a channel, within the harness's patience.
func soon[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("%s did not happen", what)
		panic("unreachable")
	}
}

func TestUpDownAndBackWhenTheRelayDies(t *testing.T) {
	t.Parallel()
	hap := newHappenings()
	e := newEndless()
	h := tunneltest.StartWith(t, tunneltest.Options{Handler: e, Hub: hap.options()})
	if g := soon(t, hap.ups, "up"); g != tunneltest.Generation {
		t.Errorf("generation %d", g)
	}
	resp, err := post(t.Context(), h.RoundTripper, "/", "x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	h.Relay.Kill()
	began := time.Now()
	if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, tunnel.ErrBroken) {
		t.Errorf("in flight: %v", err)
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("the request in flight failed only after %s", d)
	}
	if connected := h.Hub.Connected(tunneltest.Member, tunneltest.Generation); !connected && time.Since(began) < 250*time.Millisecond {
		t.Error("down before the grace was over")
	}
	if reason := soon(t, hap.downs, "down"); reason == nil {
		t.Error("down without a reason")
	}
	if d := time.Since(began); d < 250*time.Millisecond {
		t.Errorf("down after %s, before the grace was over", d)
	}
	if _, err := h.Hub.RoundTripper(tunneltest.Member, tunneltest.Generation); errs.ClassOf(err) != errs.Unavailable {
		t.Errorf("RoundTripper while down: %v", err)
	}
	if _, err := post(t.Context(), h.RoundTripper, "/", "x"); errs.ClassOf(err) != errs.Unavailable {
		t.Errorf("request while down: %v", err)
	}
	h.Relay.Start()
	soon(t, hap.ups, "up again")
	resp, err = post(t.Context(), h.RoundTripper, "/", "x")
	if err != nil {
		t.Fatalf("after the restart: %v", err)
	}
	resp.Body.Close()
}

func TestShortLossIsNoDown(t *testing.T) {
	t.Parallel()
	hap := newHappenings()
	o := hap.options()
	o.Grace = 5 * time.Second
	h := tunneltest.StartWith(t, tunneltest.Options{Handler: http.HandlerFunc(echo), Hub: o})
	soon(t, hap.ups, "up")
	h.Relay.Kill()
	h.Relay.Start()
	waitConnected(t, h)
	time.Sleep(100 * time.Millisecond)
	select {
	case reason := <-hap.downs:
		t.Errorf("down within the grace: %v", reason)
	case <-hap.ups:
		t.Error("up twice without a down")
	default:
	}
}

// deaf is a stretch of network that can stop carrying anything, without a word.
type deaf struct {
	mu    sync.Mutex
	ears  *sync.Cond
	stop  bool
	to    string
	conns sync.WaitGroup
}

// newDeaf returns a proxy in front of an address.
func newDeaf(t *testing.T, to string) (*deaf, string) {
	d := &deaf{to: to}
	d.ears = sync.NewCond(&d.mu)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); d.set(false); d.conns.Wait() })
	d.conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", d.to)
			if err != nil {
				c.Close()
				continue
			}
			d.conns.Go(func() { d.carry(c, s) })
			d.conns.Go(func() { d.carry(s, c) })
		}
	})
	return d, ln.Addr().String()
}

func (d *deaf) set(stop bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop = stop
	d.ears.Broadcast()
}

func (d *deaf) carry(dst, src net.Conn) {
	defer dst.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		d.mu.Lock()
		for d.stop {
			d.ears.Wait()
		}
		d.mu.Unlock()
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				src.Close()
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func TestSilentDeathIsNoticed(t *testing.T) {
	t.Parallel()
	hap := newHappenings()
	var d *deaf
	h := tunneltest.StartWith(t, tunneltest.Options{
		Hub: hap.options(),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}),
		Via: func(service string) string {
			var addr string
			d, addr = newDeaf(t, service)
			return addr
		},
	})
	soon(t, hap.ups, "up")
	resp, err := post(t.Context(), h.RoundTripper, "/", "x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	d.set(true)
	if _, err := resp.Body.Read(make([]byte, 1)); !errors.Is(err, tunnel.ErrBroken) {
		t.Errorf("in flight: %v, want it broken", err)
	}
	soon(t, hap.downs, "down")
	d.set(false)
	soon(t, hap.ups, "up again")
}

func TestDisconnect(t *testing.T) {
	t.Parallel()
	hap := newHappenings()
	h := tunneltest.StartWith(t, tunneltest.Options{Handler: newEndless(), Hub: hap.options()})
	soon(t, hap.ups, "up")
	resp, err := post(t.Context(), h.RoundTripper, "/", "x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	h.Ban(memberSubject(), errs.New(errs.NotFound, "member m-1 is no longer there"))
	h.Hub.Disconnect(tunneltest.Member, tunneltest.Generation)
	if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, tunnel.ErrBroken) {
		t.Errorf("in flight: %v", err)
	}
	soon(t, hap.downs, "down")
	err = soon(t, h.AgentDone, "the agent's end")
	if errs.ClassOf(err) != errs.Denied {
		t.Errorf("agent: %v, want Denied: it must not dial for ever", err)
	}
}

func memberSubject() identity.Subject {
	return identity.Subject{Role: memberapi.RoleMember, Name: tunneltest.Member, Generation: tunneltest.Generation}
}

func TestServiceThatCannotTellIsNoRefusal(t *testing.T) {
	t.Parallel()
	hap := newHappenings()
	h := tunneltest.StartWith(t, tunneltest.Options{Handler: http.HandlerFunc(echo), Hub: hap.options()})
	soon(t, hap.ups, "up")
	h.Ban(memberSubject(), errs.New(errs.Unavailable, "the store is down"))
	h.Hub.Disconnect(tunneltest.Member, tunneltest.Generation)
	soon(t, hap.downs, "down")
	select {
	case err := <-h.AgentDone:
		t.Fatalf("the agent gave up: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	h.Ban(memberSubject(), nil)
	soon(t, hap.ups, "up again")
}

func TestDrain(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(*tunneltest.Harness){
		"by the service": func(h *tunneltest.Harness) { h.Hub.Drain(tunneltest.Member) },
		"by the member":  func(h *tunneltest.Harness) { h.Agent.Drain() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hap := newHappenings()
			release := make(chan struct{})
			draining := make(chan struct{}, 1)
			h := tunneltest.StartWith(t, tunneltest.Options{
				Hub: hap.options(),
				OnState: func(s tunnel.State) {
					if s == tunnel.StateDraining {
						draining <- struct{}{}
					}
				},
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					http.NewResponseController(w).Flush()
					<-release
					w.Write(body)
				}),
			})
			soon(t, hap.ups, "up")
			resp, err := post(t.Context(), h.RoundTripper, "/", "in flight")
			if err != nil {
				t.Fatal(err)
			}
			begin(h)
			soon(t, draining, "draining")
			deadline := time.Now().Add(patience)
			for err = nil; err == nil && time.Now().Before(deadline); {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				_, err = post(ctx, h.RoundTripper, "/", "new")
				cancel()
				if errs.ClassOf(err) == errs.Timeout {
					err = nil // the hub has not heard yet
				}
			}
			if errs.ClassOf(err) != errs.Unavailable {
				t.Errorf("a new request: %v", err)
			}
			select {
			case err := <-h.AgentDone:
				t.Fatalf("the agent ended with a request in flight: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			close(release)
			if body, err := io.ReadAll(resp.Body); string(body) != "in flight" || err != nil {
				t.Errorf("in flight: %q, %v", body, err)
			}
			if err := soon(t, h.AgentDone, "the agent's end"); err != nil {
				t.Errorf("agent: %v", err)
			}
			if reason := soon(t, hap.downs, "down"); !errors.Is(reason, tunnel.ErrDrained) {
				t.Errorf("reason %v, want ErrDrained", reason)
			}
		})
	}
}

func TestDrainWithoutService(t *testing.T) {
	t.Parallel()
	h := tunneltest.Start(t, http.HandlerFunc(echo))
	h.Relay.Kill()
	h.Agent.Drain()
	if err := soon(t, h.AgentDone, "the agent's end"); err != nil {
		t.Errorf("agent: %v", err)
	}
}

func TestCallbacksMayUseTheHub(t *testing.T) {
	t.Parallel()
	var h *tunneltest.Harness
	ready := make(chan struct{})
	results := make(chan error, 2)
	h = tunneltest.StartWith(t, tunneltest.Options{
		Handler: http.HandlerFunc(echo),
		Hub: tunnel.HubOptions{
			Grace: 10 * time.Millisecond,
			OnUp: func(member string, generation int64) {
				<-ready
				rt, err := h.Hub.RoundTripper(member, generation)
				if err == nil {
					_, err = answer(post(context.Background(), rt, "/", "x"))
				}
				results <- err
			},
			OnDown: func(member string, generation int64, _ error) {
				h.Hub.Disconnect(member, generation)
				results <- nil
			},
		},
	})
	close(ready)
	if err := soon(t, results, "OnUp"); err != nil {
		t.Error(err)
	}
	h.StopAgent()
	if err := soon(t, h.AgentDone, "the agent's end"); err != nil {
		t.Errorf("agent: %v", err)
	}
	soon(t, results, "OnDown")
}

func TestWaitUpIsBounded(t *testing.T) {
	t.Parallel()
	hub := tunnel.NewHub(tunnel.HubOptions{})
	defer hub.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := hub.WaitUp(ctx, "m-none", 1); errs.ClassOf(err) != errs.Timeout {
		t.Errorf("err = %v", err)
	}
	go func() { time.Sleep(20 * time.Millisecond); hub.Close() }()
	if err := hub.WaitUp(t.Context(), "m-none", 1); errs.ClassOf(err) != errs.Unavailable {
		t.Errorf("err = %v, want Unavailable when the hub closes", err)
	}
}

// recorder is a proxy that keeps every byte that passes.
func recorder(t *testing.T, to string) (addr string, seen func() []byte) {
	var mu sync.Mutex
	var buf bytes.Buffer
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	tee := func(dst, src net.Conn) {
		defer dst.Close()
		b := make([]byte, 32<<10)
		for {
			n, err := src.Read(b)
			mu.Lock()
			buf.Write(b[:n])
			mu.Unlock()
			if _, werr := dst.Write(b[:n]); err != nil || werr != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				return
			}
			go tee(c, s)
			go tee(s, c)
		}
	}()
	return ln.Addr().String(), func() []byte {
		mu.Lock()
		defer mu.Unlock()
		return bytes.Clone(buf.Bytes())
	}
}

func TestNothingBetweenSeesPlaintext(t *testing.T) {
	t.Parallel()
	var seen func() []byte
	h := tunneltest.StartWith(t, tunneltest.Options{
		Handler: http.HandlerFunc(echo),
		Via: func(service string) (addr string) {
			addr, seen = recorder(t, service)
			return addr
		},
	})
	const secret = "password-hunter2-of-the-data-source"
	if got, err := answer(post(t.Context(), h.RoundTripper, "/", secret)); err != nil || got != secret {
		t.Fatalf("%q, %v", got, err)
	}
	wire := seen()
	if len(wire) < 1000 {
		t.Fatalf("the recorder saw %d bytes only", len(wire))
	}
	// The member's name and its one-time token travel inside TLS 1.3 as well.
	for _, clear := range []string{secret, "HTTP/1.1", "heartbeat", "token-of-", tunneltest.Member} {
		if bytes.Contains(wire, []byte(clear)) {
			t.Errorf("%q passes in the clear", clear)
		}
	}
}

func TestNothingIsLeftRunning(t *testing.T) {
	tunneltest.NoLeak(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/", echo)
	mux.Handle("/flood", newEndless())
	h := tunneltest.Start(t, mux)
	for range 10 {
		if _, err := answer(post(t.Context(), h.RoundTripper, "/", "x")); err != nil {
			t.Fatal(err)
		}
	}
	// One answer that nobody reads or closes, as a careless caller would leave it.
	if _, err := post(t.Context(), h.RoundTripper, "/flood", "x"); err != nil {
		t.Fatal(err)
	}
	h.Relay.Kill()
	h.Relay.Start()
	waitConnected(t, h)
}
