package resolver

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

// fakeUpstream is a DNS server on loopback, UDP and TCP on one port, that answers as told.
type fakeUpstream struct {
	address string
	asked   atomic.Int64
}

func startUpstream(t *testing.T, answer func(w dns.ResponseWriter, q *dns.Msg)) *fakeUpstream {
	t.Helper()
	u := &fakeUpstream{}
	pc, l := samePort(t)
	u.address = l.Addr().String()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		u.asked.Add(1)
		answer(w, q)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		started, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(done)
			_ = s.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-done
		})
	}
	return u
}

// samePort finds a port that is free for both protocols.
func samePort(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if pc, err := net.ListenPacket("udp4", l.Addr().String()); err == nil {
			return pc, l
		}
		_ = l.Close()
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil, nil
}

func aRecord(name, address string) dns.RR {
	return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 77}, A: net.ParseIP(address)}
}

func answering(address string) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{aRecord(q.Question[0].Name, address)}
		_ = w.WriteMsg(m)
	}
}

func failing(code int) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(q, code)) }
}

func silent(dns.ResponseWriter, *dns.Msg) {}

func closedPort(t *testing.T) string {
	pc, l := samePort(t)
	_, _ = pc.Close(), l.Close()
	return l.Addr().String()
}

func TestUpstreamsAreAskedInOrder(t *testing.T) {
	t.Parallel()
	const good = "NOERROR: www.example.org. 77 IN A 203.0.113.1"
	for name, c := range map[string]struct {
		first func(dns.ResponseWriter, *dns.Msg)
		want  string
		asked int64 // of the second
	}{
		"the first answers":          {answering("203.0.113.1"), good, 0},
		"the first has no such name": {failing(dns.RcodeNameError), "NXDOMAIN: ", 0},
		"the first fails":            {failing(dns.RcodeServerFailure), "NOERROR: www.example.org. 77 IN A 203.0.113.2", 1},
		"the first refuses":          {failing(dns.RcodeRefused), "NOERROR: www.example.org. 77 IN A 203.0.113.2", 1},
		"the first is silent":        {silent, "NOERROR: www.example.org. 77 IN A 203.0.113.2", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second := startUpstream(t, c.first), startUpstream(t, answering("203.0.113.2"))
			s := start(t, Options{Config: Config{Zones: corpZones(), Servers: servers(first.address, second.address), Timeout: 3 * time.Second}})
			m := query(t, "udp", s.udp, question("www.example.org.", dns.TypeA))
			if got := summary(m); got != c.want || !m.RecursionAvailable {
				t.Errorf("got %s, want %s; recursion available: %v", got, c.want, m.RecursionAvailable)
			}
			if n := second.asked.Load(); n != c.asked {
				t.Errorf("the second was asked %d times", n)
			}
			before := first.asked.Load()
			query(t, "udp", s.udp, question("nobody.corp.internal.", dns.TypeA))
			if first.asked.Load() != before {
				t.Error("a name of a private zone was asked of an upstream")
			}
		})
	}
}

// TestNoServerAnswers also looks at what the client is told.
func TestNoServerAnswers(t *testing.T) {
	t.Parallel()
	dead, broken, closed := startUpstream(t, silent), startUpstream(t, failing(dns.RcodeServerFailure)), closedPort(t)
	s := start(t, Options{Config: Config{Servers: servers(closed, dead.address, broken.address), Timeout: 3 * time.Second}})
	got := query(t, "udp", s.udp, question("www.example.org.", dns.TypeA).SetEdns0(1232, false))
	want := closed + ": nothing listens there (connection refused); " + dead.address + ": no answer in 3s; " + broken.address + ": SERVFAIL"
	if code, text := why(got); got.Rcode != dns.RcodeServerFailure || code != upstream.CodeServers || text != want {
		t.Errorf("%s, %d %q, want %q", summary(got), code, text, want)
	}
	if got := query(t, "udp", s.udp, question("www.example.org.", dns.TypeA)); got.IsEdns0() != nil {
		t.Error("a client without EDNS0 was sent it")
	}
}

// why is the extended error of a reply.
func why(m *dns.Msg) (uint16, string) {
	if o := m.IsEdns0(); o != nil {
		for _, opt := range o.Option {
			if e, ok := opt.(*dns.EDNS0_EDE); ok {
				return e.InfoCode, e.ExtraText
			}
		}
	}
	return 0, ""
}

func TestATruncatedUpstreamIsAskedOverTCP(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			m.Truncated = true
		} else {
			for range 100 {
				m.Answer = append(m.Answer, aRecord(q.Question[0].Name, "203.0.113.1"))
			}
		}
		_ = w.WriteMsg(m)
	})
	s := start(t, Options{Config: Config{Servers: servers(u.address)}})
	if got := query(t, "tcp", s.tcp, question("www.example.org.", dns.TypeA)); len(got.Answer) != 100 {
		t.Errorf("over TCP: %d answers", len(got.Answer))
	}
	if got := query(t, "udp", s.udp, question("www.example.org.", dns.TypeA)); !got.Truncated || got.Len() > 512 {
		t.Errorf("over UDP: %d bytes, truncated %v", got.Len(), got.Truncated)
	}
}

// TestForeignAnswersAreIgnored sends, before the answer, ones to other questions.
func TestForeignAnswersAreIgnored(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		for _, change := range []func(*dns.Msg){
			func(m *dns.Msg) { m.Id++ },
			func(m *dns.Msg) {
				m.Question = []dns.Question{{Name: "evil.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
			},
			func(m *dns.Msg) { m.Response = false },
		} {
			m := new(dns.Msg).SetReply(q)
			m.Answer = []dns.RR{aRecord(q.Question[0].Name, "192.0.2.66")}
			change(m)
			_ = w.WriteMsg(m)
		}
		answering("203.0.113.1")(w, q)
	})
	s := start(t, Options{Config: Config{Servers: servers(u.address)}})
	if got := summary(query(t, "udp", s.udp, question("www.example.org.", dns.TypeA))); got != "NOERROR: www.example.org. 77 IN A 203.0.113.1" {
		t.Error(got)
	}
}

func TestDialIsUsedForUpstreams(t *testing.T) {
	t.Parallel()
	u := startUpstream(t, answering("203.0.113.1"))
	var dialled atomic.Value
	s := start(t, Options{Config: Config{Servers: servers("192.0.2.53:53")}, Dial: func(ctx context.Context, network string, s upstream.Server) (net.Conn, error) {
		dialled.Store(network + " " + s.Address)
		return (&net.Dialer{}).DialContext(ctx, network, u.address)
	}})
	query(t, "udp", s.udp, question("www.example.org.", dns.TypeA))
	if got := dialled.Load(); got != "udp 192.0.2.53:53" {
		t.Errorf("dialled %v", got)
	}
}

// TestWaitingQuestionsAreBounded fills the resolver with questions that no server
// answers: more are turned away, names of the zones are still answered, and it stops
// without waiting for a server.
func TestWaitingQuestionsAreBounded(t *testing.T) {
	t.Parallel()
	dead := startUpstream(t, silent)
	s := start(t, Options{Config: Config{
		Zones:   []core.GoalZone{{Name: "z", Records: []core.GoalRecord{entry("a.z", "10.0.0.1")}}},
		Servers: servers(dead.address), Timeout: time.Hour,
	}, MaxInFlight: 3})
	c, err := net.Dial("udp", s.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for i := range 10 {
		b, _ := question(fmt.Sprintf("www%d.example.org.", i), dns.TypeA).Pack()
		_, _ = c.Write(b)
	}
	eventually(t, "three questions reach the server", func() bool { return dead.asked.Load() >= 3 })
	if got := query(t, "tcp", s.tcp, question("www.example.org.", dns.TypeA)); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("over TCP: %s", summary(got))
	}
	if got := query(t, "udp", s.udp, question("a.z.", dns.TypeA)); len(got.Answer) != 1 {
		t.Errorf("a name of a zone: %s", summary(got))
	}
	if n := dead.asked.Load(); n != 3 {
		t.Errorf("%d questions reached the server", n)
	}
	if err := s.stop(); err != nil { // it waits less than the hour, and than answerLimit
		t.Error(err)
	}
}

// TestOneClientLeavesRoomForTheOthers: one that asks as much as it can is turned away,
// another one's question reaches the server.
func TestOneClientLeavesRoomForTheOthers(t *testing.T) {
	t.Parallel()
	dead := startUpstream(t, silent)
	s := start(t, Options{Config: Config{Servers: servers(dead.address), Timeout: time.Hour}, MaxInFlight: 8, MaxInFlightPerClient: 3})
	ask := func(client string, n int) {
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(client)}}).Dial("udp", s.udp)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		for i := range n {
			b, _ := question(fmt.Sprintf("www%d.%s.example.org.", i, client), dns.TypeA).Pack()
			_, _ = c.Write(b)
		}
	}
	ask("127.0.0.1", 20)
	eventually(t, "the first client's share waits", func() bool { return s.waiting.len() == 3 })
	if got := query(t, "tcp", s.tcp, question("more.example.org.", dns.TypeA)); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("beyond its share, over TCP: %s", summary(got))
	}
	ask("127.0.0.2", 1)
	eventually(t, "the second client's question waits", func() bool { return s.waiting.len() == 4 })
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if n := s.waiting.len(); n != 0 || len(s.waiting.by) != 0 {
		t.Errorf("%d questions of %d clients still wait", n, len(s.waiting.by))
	}
}

// eventually waits until what is said comes true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(end) {
			t.Fatal("not: " + what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func servers(addresses ...string) (out []upstream.Server) {
	for _, a := range addresses {
		out = append(out, upstream.Server{Address: a})
	}
	return out
}
