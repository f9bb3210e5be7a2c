package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

// dnsServer runs a real DNS server on UDP and TCP and returns its address.
func dnsServer(t *testing.T, answer func(q dns.Question, m *dns.Msg) bool) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if answer(r.Question[0], m) {
			_ = w.WriteMsg(m)
		}
	})
	started := make(chan struct{})
	server := &dns.Server{PacketConn: pc, Handler: handler, NotifyStartedFunc: func() { close(started) }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ActivateAndServe()
	}()
	<-started
	t.Cleanup(func() {
		_ = server.Shutdown()
		<-done
	})
	return pc.LocalAddr().String()
}

func corpZone(q dns.Question, m *dns.Msg) bool {
	switch {
	case q.Name == "orders.corp.internal." && q.Qtype == dns.TypeA:
		rr, _ := dns.NewRR("orders.corp.internal. 10 IN A 10.20.1.4")
		m.Answer = append(m.Answer, rr)
	case q.Name == "orders.corp.internal.":
	case strings.HasPrefix(q.Name, "refused."):
		m.Rcode = dns.RcodeRefused
	case strings.HasPrefix(q.Name, "broken."):
		m.Rcode = dns.RcodeServerFailure
	default:
		m.Rcode = dns.RcodeNameError
	}
	return true
}

func closedUDP(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	return pc.LocalAddr().String()
}

func TestResolve(t *testing.T) {
	t.Parallel()
	good := dnsServer(t, corpZone)
	silent := dnsServer(t, func(dns.Question, *dns.Msg) bool { return false })
	closed := closedUDP(t)
	for _, tt := range []struct {
		name    string
		servers []string
		host    string
		want    string // an address, or part of an error
	}{
		{"a record", []string{good}, "orders.corp.internal", "10.20.1.4"},
		{"with a final dot", []string{good}, "orders.corp.internal.", "10.20.1.4"},
		{"an address", nil, "10.9.8.7", "10.9.8.7"},
		{"an IPv6 address", nil, "fd00::1", "fd00::1"},
		{"no such name", []string{good}, "nobody.corp.internal", "nobody.corp.internal does not exist: asked " + good + ": NXDOMAIN"},
		{"refused", []string{good}, "refused.corp.internal", "can't be resolved: asked " + good + ": REFUSED"},
		{"broken", []string{good}, "broken.corp.internal", "can't be resolved: asked " + good + ": SERVFAIL"},
		{"silent", []string{silent}, "orders.corp.internal", "can't be resolved: asked " + silent + ": no answer in "},
		{"nothing there", []string{closed}, "orders.corp.internal", "can't be resolved: asked " + closed + ": nothing listens there"},
		{"no server", nil, "orders.corp.internal", "was given no DNS server"},
		{"the second server", []string{closed, good}, "orders.corp.internal", "10.20.1.4"},
		{"the second server, after silence", []string{silent, good}, "orders.corp.internal", "10.20.1.4"},
		{"the first word counts", []string{good, silent}, "nobody.corp.internal", "does not exist"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newResolver(tt.servers, upstream.Options{Timeout: 3 * time.Second})
			addrs, err := r.Resolve(t.Context(), tt.host)
			got := strings.Join(addrs, " ")
			if err != nil {
				got = err.Error()
				if e := errs.As(err); e.Step != errs.StepResolve || e.Class != errs.Unavailable {
					t.Errorf("class %s, step %s", e.Class, e.Step)
				}
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// A lost packet costs one try, not the name.
func TestResolveAsksAgain(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	server := dnsServer(t, func(q dns.Question, m *dns.Msg) bool {
		return asked.Add(1) > 1 && corpZone(q, m) // the first is lost
	})
	addrs, err := NewSourceResolver([]string{server}).Resolve(t.Context(), "orders.corp.internal")
	if err != nil || len(addrs) != 1 {
		t.Fatal(addrs, err)
	}
}

func TestResolveEndsWithItsContext(t *testing.T) {
	t.Parallel()
	silent := dnsServer(t, func(dns.Question, *dns.Msg) bool { return false })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := NewResolver([]string{silent}).Resolve(ctx, "orders.corp.internal")
	if errs.ClassOf(err) != errs.Timeout {
		t.Errorf("got %v", err)
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := uint16(l.Addr().(*net.TCPAddr).Port)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := uint16(free.Addr().(*net.TCPAddr).Port)
	free.Close()

	server := dnsServer(t, corpZone)
	url, _ := serve(t, &fakeSource{}, func(o *ServerOptions) { o.Resolve = NewResolver([]string{server}).Resolve })
	for _, tt := range []struct {
		name      string
		req       memberapi.ProbeRequest
		address   string
		connected bool
		err       string
	}{
		{"open", memberapi.ProbeRequest{Host: "127.0.0.1", Port: open}, "127.0.0.1", true, ""},
		{"closed", memberapi.ProbeRequest{Host: "127.0.0.1", Port: closed}, "127.0.0.1", false, fmt.Sprintf("127.0.0.1:%d refused the connection", closed)},
		{"unknown", memberapi.ProbeRequest{Host: "nobody.corp.internal", Port: 1}, "", false, "nobody.corp.internal does not exist: asked " + server + ": NXDOMAIN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got core.Probe
			if err := json.NewDecoder(post(t, t.Context(), url+memberapi.PathProbe, tt.req).Body).Decode(&got); err != nil {
				t.Fatal(err)
			}
			if got.Address != tt.address || got.Connected != tt.connected || !strings.HasPrefix(got.Error, tt.err) || (tt.err == "") != (got.Error == "") {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// tester is a database that tests itself in steps.
type tester struct {
	*fakeDatabase
	err error
}

func (d tester) Test(_ context.Context, step func(string, time.Duration, string)) error {
	step(errs.StepResolve, time.Millisecond, "10.20.1.4")
	step(errs.StepConnect, 2*time.Millisecond, "")
	return d.err
}

func TestTest(t *testing.T) {
	t.Parallel()
	refused := errs.New(errs.Source, "password authentication failed").WithStep(errs.StepSignIn).WithHint("check it")
	withSteps := func(err error) *fakeSource {
		return &fakeSource{extend: func(d *fakeDatabase) adbc.Database { return tester{d, err} }}
	}
	for _, tt := range []struct {
		name   string
		source *fakeSource
		want   []string
	}{
		{"all steps", withSteps(nil), []string{"resolve: 10.20.1.4", "connect: "}},
		{"the last fails", withSteps(refused), []string{"resolve: 10.20.1.4", "connect: ", "sign-in! password authentication failed (check it)"}},
		{"no steps", &fakeSource{}, []string{"connect: "}},
		{"no connection", &fakeSource{dialErr: errs.New(errs.Unavailable, "refused")}, []string{"connect! refused ()"}},
		{"bad parameter", &fakeSource{openErr: errs.New(errs.Invalid, "no host")}, []string{"admit! no host ()"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url, _ := serve(t, tt.source)
			var resp memberapi.TestResponse
			if err := json.NewDecoder(post(t, t.Context(), url+memberapi.PathTest, memberapi.SourceRequest{Source: source}).Body).Decode(&resp); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range resp.Steps {
				if s.Error != "" {
					got = append(got, fmt.Sprintf("%s! %s (%s)", s.Name, s.Error, s.Hint))
				} else {
					got = append(got, s.Name+": "+s.Detail)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
