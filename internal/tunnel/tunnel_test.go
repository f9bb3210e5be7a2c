package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/tunnel"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

const patience = tunneltest.Patience

// echo answers with the body it got, and a trailer.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "Status")
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(http.StatusOK)
	http.NewResponseController(w).Flush() // chunked, whatever the size
	w.Write(body)
	w.Header().Set("Status", "ok")
}

func post(ctx context.Context, rt http.RoundTripper, path, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://member"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	return rt.RoundTrip(req)
}

// answer reads a whole answer and checks its trailer.
func answer(resp *http.Response, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if s := resp.Trailer.Get("Status"); s != "ok" {
		return "", fmt.Errorf("trailer %q", s)
	}
	return string(body), nil
}

func TestRequestAnswerTrailer(t *testing.T) {
	t.Parallel()
	h := tunneltest.Start(t, http.HandlerFunc(echo))
	for _, size := range []int{0, 1, 5000, 3 << 20} {
		want := strings.Repeat("x", size)
		got, err := answer(post(t.Context(), h.RoundTripper, "/", want))
		if err != nil || got != want {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
	}
}

func TestAnswerWithoutBodyAndErrors(t *testing.T) {
	t.Parallel()
	h := tunneltest.Start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	before := h.Relay.Stats().Accepted
	for range 20 {
		resp, err := post(t.Context(), h.RoundTripper, "/", "x")
		if err != nil || resp.StatusCode != http.StatusNoContent {
			t.Fatalf("%v, %v", resp, err)
		}
	}
	if after := h.Relay.Stats().Accepted; after > before+tunnel.DefaultParked {
		t.Errorf("%d new connections for 20 requests one after the other: they are not used again", after-before)
	}
}

func TestConcurrentRequests(t *testing.T) {
	t.Parallel()
	h := tunneltest.Start(t, http.HandlerFunc(echo))
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for j := range 10 {
				want := fmt.Sprint(i, j, strings.Repeat("y", i*100))
				if got, err := answer(post(t.Context(), h.RoundTripper, "/", want)); err != nil || got != want {
					t.Errorf("request %d.%d: %d bytes, %v", i, j, len(got), err)
				}
			}
		})
	}
	wg.Wait()
}

func TestMoreAtOnceThanParked(t *testing.T) {
	t.Parallel()
	var arrived sync.WaitGroup
	arrived.Add(64)
	h := tunneltest.Start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived.Done()
		arrived.Wait() // nobody answers until 64 run at the same time
		echo(w, r)
	}))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if _, err := answer(post(ctx, h.RoundTripper, "/", "x")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestOneTooManyIsUnavailable(t *testing.T) {
	t.Parallel()
	release, begun := make(chan struct{}), make(chan bool, 8)
	h := tunneltest.StartWith(t, tunneltest.Options{
		Hub: tunnel.HubOptions{MaxData: 2, TakeTimeout: 2 * time.Second},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begun <- true
			<-release
			echo(w, r)
		}),
	})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := answer(post(t.Context(), h.RoundTripper, "/", "x")); err != nil {
				t.Error(err)
			}
		})
	}
	for range 2 {
		soon(t, begun, "a request")
	}
	_, err := post(t.Context(), h.RoundTripper, "/", "x")
	if e := errs.As(err); e == nil || e.Class != errs.Unavailable || e.Step != errs.StepTunnel || e.Hint == "" {
		t.Errorf("err = %#v, want Unavailable at the tunnel with a hint", e)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := post(ctx, h.RoundTripper, "/", "x"); errs.ClassOf(err) != errs.Timeout {
		t.Errorf("err = %v, want the end of the context", err)
	}
	close(release)
	wg.Wait()
	if _, err := answer(post(t.Context(), h.RoundTripper, "/", "x")); err != nil {
		t.Errorf("after they ended: %v", err)
	}
}

// endless writes until its context ends, and tells when that was.
type endless struct {
	ended   chan time.Time
	written chan int64
}

func newEndless() *endless {
	return &endless{ended: make(chan time.Time, 64), written: make(chan int64, 64)}
}

func (e *endless) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	var n int64
	block := bytes.Repeat([]byte("z"), 64<<10)
	for r.Context().Err() == nil {
		k, err := w.Write(block)
		n += int64(k)
		if err != nil {
			break
		}
	}
	e.ended <- time.Now()
	e.written <- n
}

func TestClosingTheBodyEndsTheHandler(t *testing.T) {
	t.Parallel()
	silent := make(chan time.Time, 1)
	e := newEndless()
	mux := http.NewServeMux()
	mux.Handle("/flood", e)
	mux.HandleFunc("/silent", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		silent <- time.Now()
	})
	h := tunneltest.Start(t, mux)
	for path, ended := range map[string]chan time.Time{"/flood": e.ended, "/silent": silent} {
		resp, err := post(t.Context(), h.RoundTripper, path, "x")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		began := time.Now()
		resp.Body.Close()
		select {
		case at := <-ended:
			if d := at.Sub(began); d > patience/4 {
				t.Errorf("%s: the handler noticed after %s", path, d)
			}
		case <-time.After(patience):
			t.Errorf("%s: the handler never noticed", path)
		}
	}
}

func TestContextEndsRequestAndBody(t *testing.T) {
	t.Parallel()
	entered := make(chan struct{}, 2)
	ended := make(chan struct{}, 2)
	h := tunneltest.Start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/body" {
			http.NewResponseController(w).Flush()
		}
		entered <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	}))
	cause := errors.New("the client went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { <-entered; cancel(cause) }()
	if _, err := post(ctx, h.RoundTripper, "/head", "x"); !errors.Is(err, cause) {
		t.Errorf("before the answer: err = %v, want the context's cause", err)
	}
	<-ended
	ctx, cancel = context.WithCancelCause(t.Context())
	resp, err := post(ctx, h.RoundTripper, "/body", "x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	go func() { <-entered; cancel(cause) }()
	if _, err := resp.Body.Read(make([]byte, 1)); !errors.Is(err, cause) {
		t.Errorf("in the body: err = %v, want the context's cause", err)
	}
	<-ended
}

// TestStalledReaderHoldsUpNobody is the bug class of multiplexers and of proxies that
// handle dials and data in one loop: readers that stop must not delay other requests,
// new connections or the control connection.
func TestStalledReaderHoldsUpNobody(t *testing.T) {
	t.Parallel()
	e := newEndless()
	mux := http.NewServeMux()
	mux.Handle("/flood", e)
	mux.HandleFunc("/", echo)
	h := tunneltest.StartWith(t, tunneltest.Options{
		Handler: mux,
		Hub:     tunnel.HubOptions{HeartbeatEvery: 50 * time.Millisecond, HeartbeatTimeout: 3 * time.Second, Grace: 200 * time.Millisecond},
	})
	var stalled []*http.Response
	for range 16 {
		resp, err := post(t.Context(), h.RoundTripper, "/flood", "x")
		if err != nil {
			t.Fatal(err)
		}
		stalled = append(stalled, resp)
	}
	defer func() {
		for _, r := range stalled {
			r.Body.Close()
		}
	}()
	end := time.Now().Add(3500 * time.Millisecond) // past the heartbeat's time-out
	for time.Now().Before(end) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if _, err := answer(post(ctx, h.RoundTripper, "/", "still there?")); err != nil {
			t.Fatalf("with 16 stalled readers: %v", err)
		}
		cancel()
		time.Sleep(20 * time.Millisecond)
	}
	select {
	case <-e.ended:
		t.Error("a stalled reader's request was ended")
	default:
	}
	if n, err := io.CopyN(io.Discard, stalled[0].Body, 32<<20); err != nil {
		t.Errorf("the stalled reader goes on: %d bytes, %v", n, err)
	}
}

func TestBackPressure(t *testing.T) {
	t.Parallel()
	e := newEndless()
	h := tunneltest.Start(t, e)
	resp, err := post(t.Context(), h.RoundTripper, "/", "x")
	if err != nil {
		t.Fatal(err)
	}
	io.CopyN(io.Discard, resp.Body, 1<<20)
	time.Sleep(500 * time.Millisecond) // plenty to write gigabytes
	resp.Body.Close()
	<-e.ended
	// The sockets' buffers of three hops, at their largest, and not more.
	if n := <-e.written; n > 64<<20 {
		t.Errorf("the handler wrote %d MB to a reader that had stopped after 1 MB", n>>20)
	}
}

func TestBrokenBodyIsNeverWhole(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Write([]byte("half of it"))
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.Handle("/flood", newEndless())
	h := tunneltest.Start(t, mux)
	for name, act := range map[string]func(){"/abort": func() {}, "/flood": h.Relay.Kill} {
		resp, err := post(t.Context(), h.RoundTripper, name, "x")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		io.ReadFull(resp.Body, make([]byte, 10))
		act()
		_, err = io.Copy(io.Discard, resp.Body)
		if !errors.Is(err, tunnel.ErrBroken) || errs.ClassOf(err) != errs.Unavailable || errs.As(err).Step != errs.StepStream {
			t.Errorf("%s: err = %v, want ErrBroken, Unavailable, at the stream", name, err)
		}
		resp.Body.Close()
		if name == "/flood" {
			h.Relay.Start()
		}
		waitConnected(t, h)
	}
}

// waitConnected waits until a request succeeds, whatever state the tunnel is in.
func waitConnected(t *testing.T, h *tunneltest.Harness) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		resp, err := post(t.Context(), h.RoundTripper, "/nothing", "x")
		if err == nil {
			resp.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the tunnel does not recover: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestDeathBeforeTheAnswerIsTold(t *testing.T) {
	t.Parallel()
	h := tunneltest.Start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		panic(http.ErrAbortHandler)
	}))
	_, err := post(t.Context(), h.RoundTripper, "/", "x")
	if !errors.Is(err, tunnel.ErrNoResponse) || errs.As(err).Step != errs.StepTunnel {
		t.Errorf("err = %v, want ErrNoResponse", err)
	}
}

func TestUnsolicitedOrUnframedAnswersAreRefused(t *testing.T) {
	t.Parallel()
	h := tunneltest.Start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		switch r.URL.Path {
		case "/unframed":
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nall there is?")
		case "/twice":
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb")
			time.Sleep(200 * time.Millisecond)
		default:
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nc")
			time.Sleep(200 * time.Millisecond)
		}
	}))
	if resp, err := post(t.Context(), h.RoundTripper, "/unframed", "x"); !errors.Is(err, tunnel.ErrBroken) {
		t.Errorf("unframed: %v, %v; want a refusal, since its end can't be told", resp, err)
	}
	resp, err := post(t.Context(), h.RoundTripper, "/twice", "x")
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); string(body) != "a" || err != nil {
		t.Errorf("first: %q, %v", body, err)
	}
	for range 8 {
		resp, err = post(t.Context(), h.RoundTripper, "/once", "x")
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "c" {
			t.Fatalf("the next request got %q, which another one's answer carried", body)
		}
	}
}

func TestAnswerBeforeTheRequestWasRead(t *testing.T) {
	t.Parallel()
	h := tunneltest.Start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "too large for me", http.StatusRequestEntityTooLarge)
	}))
	for range 5 {
		resp, err := post(t.Context(), h.RoundTripper, "/", strings.Repeat("x", 16<<20))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(string(body), "too large") || err != nil {
			t.Errorf("%d, %q, %v", resp.StatusCode, body, err)
		}
	}
}

// TestWriteTimeoutEndsThePeersRead: a side that gives up must not leave the other one
// waiting, also if nothing could be written any more to say so.
func TestWriteTimeoutEndsThePeersRead(t *testing.T) {
	t.Parallel()
	gaveUp := make(chan struct{})
	h := tunneltest.Start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		for {
			if _, err := w.Write(make([]byte, 256<<10)); err != nil {
				close(gaveUp)
				panic(http.ErrAbortHandler)
			}
		}
	}))
	resp, err := post(t.Context(), h.RoundTripper, "/", "x")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	soon(t, gaveUp, "the write's time-out")
	end := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, resp.Body); end <- err }()
	if err := soon(t, end, "the end of the peer's read"); !errors.Is(err, tunnel.ErrBroken) {
		t.Errorf("err = %v, want ErrBroken", err)
	}
}

func TestSurplusConnectionsAreGivenUp(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	h := tunneltest.StartWith(t, tunneltest.Options{
		Hub: tunnel.HubOptions{HeartbeatEvery: 20 * time.Millisecond, HeartbeatTimeout: 5 * time.Second},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-release
			echo(w, r)
		}),
	})
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := answer(post(t.Context(), h.RoundTripper, "/", "x")); err != nil {
				t.Error(err)
			}
		})
	}
	for deadline := time.Now().Add(patience); h.Relay.Stats().Open < 33; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections for 32 requests", h.Relay.Stats().Open)
		}
	}
	close(release)
	wg.Wait()
	want := tunnel.DefaultParked + 1 // and the control connection
	for deadline := time.Now().Add(patience); h.Relay.Stats().Open != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections while nothing runs, want %d", h.Relay.Stats().Open, want)
		}
	}
	if _, err := answer(post(t.Context(), h.RoundTripper, "/", "x")); err != nil {
		t.Error(err)
	}
}
