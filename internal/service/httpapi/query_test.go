package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/format"
	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

// start serves the API for a fake on a TCP port; h2 over TLS where asked for.
func start(t *testing.T, front *frontendtest.Front, h2 bool) *httptest.Server {
	t.Helper()
	goroutines := runtime.NumGoroutine()
	srv := httptest.NewUnstartedServer(New(Options{Frontend: front, Logger: slog.New(slog.DiscardHandler), StallTimeout: 5 * time.Second}))
	if srv.EnableHTTP2 = h2; h2 {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(func() {
		srv.Client().CloseIdleConnections()
		srv.Close()
		if !front.WaitClosed(30 * time.Second) {
			t.Errorf("%d results were never finished", front.Open())
		}
		noLeak(t, goroutines)
	})
	return srv
}

// noLeak fails if more goroutines run than before.
func noLeak(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if runtime.NumGoroutine() <= before {
			return
		}
	}
	buf := make([]byte, 1<<20)
	t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
}

// do sends a request with the good token.
func do(t *testing.T, srv *httptest.Server, method, path, body string, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+frontendtest.Token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// errorOf reads an answer that is an error.
func errorOf(t *testing.T, resp *http.Response) errorBody {
	t.Helper()
	var e errorBody
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Error == nil || e.Error.Message == "" {
		t.Fatalf("status %d: not an error: %v", resp.StatusCode, err)
	}
	return e
}

const ask = `{"source":"orders","sql":"select","class":"interactive","timeout":"30s"}`

func TestQueryInEveryForm(t *testing.T) {
	front := frontendtest.New()
	stream := frontendtest.Numbers(3, 1000)
	front.On("select", frontendtest.Whole(stream))
	srv := start(t, front, false)
	for _, f := range format.All() {
		var want bytes.Buffer
		if _, err := f.Encode(&want, bytes.NewReader(stream)); err != nil {
			t.Fatal(err)
		}
		resp := do(t, srv, "POST", "/v1/query", ask, "Accept", f.Media)
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%s: status %d, %d bytes, want %d, %v", f.Name, resp.StatusCode, len(got), want.Len(), err)
		}
		if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, f.Media) || resp.Header.Get(HeaderQueryID) == "" {
			t.Errorf("%s: headers %v", f.Name, resp.Header)
		}
	}
	in := front.Queries()[0]
	if in.Source != "orders" || in.SQL != "select" || in.Class != "interactive" || in.Timeout != 30*time.Second {
		t.Errorf("the service was asked %+v", in)
	}
	for id, err := range front.Finished() {
		if err != nil {
			t.Errorf("%s finished with %v", id, err)
		}
	}
}

// TestBrokenResultIsNeverWhole: promise 5 on this side, in each form and protocol.
func TestBrokenResultIsNeverWhole(t *testing.T) {
	died := errs.New(errs.Source, "the server closed the connection").WithStep(errs.StepStream)
	late := frontendtest.Whole(frontendtest.Numbers(2, 100))
	late.Then = died // after the end-of-stream marker
	for _, h2 := range []bool{false, true} {
		front := frontendtest.New()
		front.On("select", frontendtest.BreaksOff(50, 1000, died))
		front.On("late", late)
		srv := start(t, front, h2)
		for _, f := range format.All() {
			for _, sql := range []string{"select", "late"} {
				resp := do(t, srv, "POST", "/v1/query", strings.Replace(ask, "select", sql, 1), "Accept", f.Media)
				if want := map[bool]int{false: 1, true: 2}[h2]; resp.ProtoMajor != want {
					t.Fatalf("protocol %s", resp.Proto)
				}
				if resp.StatusCode != 200 { // Parquet had nothing to send yet
					if e := errorOf(t, resp); e.Error.Class != errs.Source || resp.StatusCode != 422 {
						t.Errorf("%s: status %d, %+v", f.Name, resp.StatusCode, e.Error)
					}
					continue
				}
				body, err := io.ReadAll(resp.Body)
				if err == nil {
					t.Errorf("%s %s, HTTP/2 %v: read %d bytes without an error: …%q", f.Name, sql, h2, len(body), body[max(0, len(body)-30):])
				}
				if f.Name == "json" && json.Valid(body) {
					t.Errorf("%s: the JSON is complete", sql)
				}
				if f.Name == "arrow" && bytes.HasSuffix(body, []byte{0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0}) {
					t.Errorf("%s: the Arrow stream is complete", sql)
				}
			}
		}
		for id, err := range front.Finished() {
			if !errors.Is(err, died) {
				t.Errorf("%s finished with %v", id, err)
			}
		}
	}
}

func TestErrorBeforeTheFirstByte(t *testing.T) {
	front := frontendtest.New()
	front.On("early", frontendtest.Answer{Then: errs.New(errs.Exhausted, "too many rows")})
	srv := start(t, front, false)
	for _, c := range []struct {
		body   string
		status int
		class  errs.Class
	}{
		{`{"source":"none","sql":"x"}`, 404, errs.NotFound},
		{`{"source":"orders","sql":"selct"}`, 422, errs.Source},
		{`{"source":"orders","sql":"early"}`, 429, errs.Exhausted},
	} {
		resp := do(t, srv, "POST", "/v1/query", c.body)
		e := errorOf(t, resp)
		if resp.StatusCode != c.status || e.Error.Class != c.class || resp.Header.Get(HeaderQueryID) == "" {
			t.Errorf("%s: status %d, %+v, query %q", c.body, resp.StatusCode, e.Error, resp.Header.Get(HeaderQueryID))
		}
	}
}

func TestFirstRowsLeaveAtOnce(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		front := frontendtest.New()
		slow := frontendtest.Long(1, 3)
		slow.Tail, slow.Block = nil, true
		front.On("select", slow)
		srv := start(t, front, h2)
		for _, f := range []struct{ media, want string }{{format.MediaJSON, `[2,"row 2"]`}, {format.MediaCSV, "2,row 2"}} {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL+"/v1/query", strings.NewReader(ask))
			req.Header.Set("Authorization", "Bearer "+frontendtest.Token)
			req.Header.Set("Accept", f.media)
			resp, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			seen, buf := "", make([]byte, 1000)
			for !strings.Contains(seen, f.want) && err == nil {
				var n int
				n, err = resp.Body.Read(buf)
				seen += string(buf[:n])
			}
			if err != nil {
				t.Errorf("%s: saw %q before the result ended", f.media, seen)
			}
			cancel()
			resp.Body.Close()
		}
	}
}

func TestClientGoneEndsTheQuery(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		front := frontendtest.New()
		hang := frontendtest.Long(1, 3)
		hang.Tail, hang.Block = nil, true
		front.On("select", hang)
		srv := start(t, front, h2)
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL+"/v1/query", strings.NewReader(ask))
		req.Header.Set("Authorization", "Bearer "+frontendtest.Token)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		resp.Body.Close()
		if !front.WaitClosed(30 * time.Second) {
			t.Fatal("the query goes on without its client")
		}
		for _, err := range front.Finished() {
			if errs.ClassOf(err) != errs.Cancelled {
				t.Errorf("finished with %v", err)
			}
		}
	}
}

// TestSlowClientHoldsTheResultBack: nothing is read ahead of the client but what the
// kernel's buffers take.
func TestSlowClientHoldsTheResultBack(t *testing.T) {
	front := frontendtest.New()
	front.On("select", frontendtest.Long(4000, 10000)) // about 800 MB of Arrow
	srv := start(t, front, false)
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL+"/v1/query", strings.NewReader(ask))
	req.Header.Set("Authorization", "Bearer "+frontendtest.Token)
	req.Header.Set("Accept", format.MediaArrow)
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n := front.Settled(); n > 32<<20 {
		t.Errorf("%d bytes were read for a client that reads none", n)
	}
	cancel()
	if !front.WaitClosed(30 * time.Second) {
		t.Error("the query goes on")
	}
}

func TestStalledClientIsCutOff(t *testing.T) {
	front := frontendtest.New()
	front.On("select", frontendtest.Long(4000, 10000))
	srv := httptest.NewServer(New(Options{Frontend: front, Logger: slog.New(slog.DiscardHandler), StallTimeout: 300 * time.Millisecond}))
	defer srv.Close()
	resp := do(t, srv, "POST", "/v1/query", ask, "Accept", format.MediaArrow)
	if !front.WaitClosed(30 * time.Second) {
		t.Fatal("a client that takes nothing keeps its query")
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the cut result reads as whole")
	}
}

func TestConnectionServesAgain(t *testing.T) {
	front := frontendtest.New()
	front.On("select", frontendtest.Whole(frontendtest.Numbers(1, 1)))
	srv := httptest.NewServer(New(Options{Frontend: front, Logger: slog.New(slog.DiscardHandler), StallTimeout: 500 * time.Millisecond}))
	defer srv.Close()
	for range 3 {
		resp := do(t, srv, "POST", "/v1/query", ask)
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		time.Sleep(600 * time.Millisecond) // past the write deadline of the query before
		if resp := do(t, srv, "GET", "/v1/gateways", ""); resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
}

func TestQueryRequestsAreStrict(t *testing.T) {
	srv := start(t, frontendtest.New(), false)
	for _, c := range []struct {
		name, body string
		header     []string
		status     int
	}{
		{"empty", ``, nil, 400},
		{"not JSON", `select 1`, nil, 400},
		{"unknown field", `{"source":"orders","sql":"x","limit":1}`, nil, 400},
		{"two documents", ask + ask, nil, 400},
		{"no source", `{"sql":"x"}`, nil, 400},
		{"no SQL", `{"source":"orders","sql":" "}`, nil, 400},
		{"bad class", `{"source":"orders","sql":"x","class":"batch"}`, nil, 400},
		{"bad timeout", `{"source":"orders","sql":"x","timeout":"soon"}`, nil, 400},
		{"timeout as a number", `{"source":"orders","sql":"x","timeout":30}`, nil, 400},
		{"no timeout at all", `{"source":"orders","sql":"x","timeout":"never"}`, nil, 400},
		{"too large", `{"source":"orders","sql":"` + strings.Repeat("x", maxQuery) + `"}`, nil, 413},
		{"form", ask, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
		{"no such form", ask, []string{"Accept", "application/xml"}, 406},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := do(t, srv, "POST", "/v1/query", c.body, c.header...)
			if e := errorOf(t, resp); resp.StatusCode != c.status || e.Error.Class != errs.Invalid {
				t.Errorf("status %d, want %d: %+v", resp.StatusCode, c.status, e.Error)
			}
		})
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte(ask))
	f.Add([]byte(`{"documents":[{"kind":"gateway","name":"x"}]}`))
	f.Add([]byte(`{"source":"","sql":null}{`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var q queryRequest
		if err := decodeStrict(body, &q); err == nil {
			if in, err := q.input(); err == nil && (in.Source == "" || strings.TrimSpace(in.SQL) == "" || in.Timeout < 0) {
				t.Errorf("took %+v", in)
			}
		} else if errs.ClassOf(err) != errs.Invalid {
			t.Errorf("class %s: %v", errs.ClassOf(err), err)
		}
		var a applyRequest
		if decodeStrict(body, &a) != nil {
			return
		}
		for i, raw := range a.Documents {
			if d, err := document(i, raw); err == nil && d.Kind == "" {
				t.Errorf("took a document without a kind: %s", raw)
			}
		}
	})
}
