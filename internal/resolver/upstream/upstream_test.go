package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// server is one on loopback, UDP and TCP on one port, that answers as told.
type server struct {
	address  string
	udp, tcp atomic.Int64 // questions
}

type answer func(w dns.ResponseWriter, q *dns.Msg, udp bool)

func start(t *testing.T, a answer) *server {
	t.Helper()
	s := &server{}
	pc, l := samePort(t)
	s.address = l.Addr().String()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_, udp := w.RemoteAddr().(*net.UDPAddr)
		if udp {
			s.udp.Add(1)
		} else {
			s.tcp.Add(1)
		}
		a(w, q, udp)
	})
	for _, d := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		started, done := make(chan struct{}), make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(done)
			_ = d.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			_ = d.Shutdown()
			<-done
		})
	}
	return s
}

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

func closed(t *testing.T) string {
	t.Helper()
	pc, l := samePort(t)
	_, _ = pc.Close(), l.Close()
	return l.Addr().String()
}

func with(address string) answer {
	return func(w dns.ResponseWriter, q *dns.Msg, _ bool) { _ = w.WriteMsg(reply1(q, address)) }
}

func reply1(q *dns.Msg, address string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(address)}}
	return m
}

func code(rcode int) answer {
	return func(w dns.ResponseWriter, q *dns.Msg, _ bool) { _ = w.WriteMsg(new(dns.Msg).SetRcode(q, rcode)) }
}

func silent(dns.ResponseWriter, *dns.Msg, bool) {}

func client(o Options, addresses ...string) *Client {
	for _, a := range addresses {
		o.Servers = append(o.Servers, Server{Address: a})
	}
	return New(o)
}

func ask(t *testing.T, c *Client) (string, Outcomes) {
	t.Helper()
	got, outcomes := c.Ask(t.Context(), Question(dns.Question{Name: "www.example.org.", Qtype: dns.TypeA, Qclass: dns.ClassINET}, nil))
	switch {
	case got == nil:
		return "none", outcomes
	case len(got.Answer) > 0:
		return got.Answer[0].(*dns.A).A.String(), outcomes
	}
	return dns.RcodeToString[got.Rcode], outcomes
}

func TestWhatEachServerDid(t *testing.T) {
	t.Parallel()
	referral := func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
		m := new(dns.Msg).SetReply(q)
		ns, _ := dns.NewRR("org. 60 IN NS a.org.")
		m.Ns = []dns.RR{ns}
		_ = w.WriteMsg(m)
	}
	reason := func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
		m := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: 6, ExtraText: "bad\x1b[31m signature"}}
		_ = w.WriteMsg(m)
	}
	foreign := func(w dns.ResponseWriter, q *dns.Msg, udp bool) {
		for _, change := range []func(*dns.Msg){
			func(m *dns.Msg) { m.Id++ },
			func(m *dns.Msg) { m.Question[0].Name = "evil.example." },
			func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
			func(m *dns.Msg) { m.Response = false },
		} {
			m := reply1(q, "192.0.2.66")
			m.Question = append([]dns.Question{}, m.Question...)
			change(m)
			_ = w.WriteMsg(m)
		}
		_, _ = w.Write([]byte("rubbish"))
		with("203.0.113.1")(w, q, udp)
	}
	noEDNS := func(w dns.ResponseWriter, q *dns.Msg, udp bool) {
		if q.IsEdns0() != nil {
			m := new(dns.Msg)
			m.Id, m.Response, m.Rcode = q.Id, true, dns.RcodeFormatError
			_ = w.WriteMsg(m)
			return
		}
		with("203.0.113.1")(w, q, udp)
	}
	long := func(w dns.ResponseWriter, q *dns.Msg, udp bool) {
		m := reply1(q, "203.0.113.1")
		if udp {
			m.Truncated, m.Answer = true, nil
		}
		_ = w.WriteMsg(m)
	}
	onlyTCP := func(w dns.ResponseWriter, q *dns.Msg, udp bool) {
		if !udp {
			with("203.0.113.1")(w, q, udp)
		}
	}
	for name, c := range map[string]struct {
		a       answer
		want    string // "" if the next server is asked
		outcome string
		result  Result
	}{
		"answers":                  {with("203.0.113.1"), "203.0.113.1", "NOERROR", Answered},
		"has no such name":         {code(dns.RcodeNameError), "NXDOMAIN", "NXDOMAIN", Answered},
		"has no such record":       {code(dns.RcodeSuccess), "NOERROR", "no such record", Answered},
		"fails":                    {code(dns.RcodeServerFailure), "", "SERVFAIL", Failed},
		"refuses":                  {code(dns.RcodeRefused), "", "REFUSED", Failed},
		"gives a reason":           {reason, "", "SERVFAIL (bad?[31m signature)", Failed},
		"refers to others":         {referral, "", "a referral: it does not resolve names for others", Failed},
		"is silent":                {silent, "", "no answer in 3s", Silent},
		"hears TCP alone":          {onlyTCP, "203.0.113.1", "NOERROR", Answered},
		"has a long answer":        {long, "203.0.113.1", "NOERROR", Answered},
		"does not know EDNS0":      {noEDNS, "203.0.113.1", "NOERROR", Answered},
		"is not alone on the wire": {foreign, "203.0.113.1", "NOERROR", Answered},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second := start(t, c.a), start(t, with("203.0.113.2"))
			timeout := 30 * time.Second
			if c.result == Silent {
				timeout = 3 * time.Second
			}
			if name == "hears TCP alone" {
				timeout = 6 * time.Second
			}
			got, outcomes := ask(t, client(Options{Timeout: timeout, Limit: time.Minute}, first.address, second.address))
			want, all := c.want, first.address+": "+c.outcome
			if want == "" {
				want, all = "203.0.113.2", all+"; "+second.address+": NOERROR"
			}
			if got != want || outcomes.String() != all || outcomes[0].Result != c.result {
				t.Errorf("got %s (%s, %d), want %s (%s, %d)", got, outcomes, outcomes[0].Result, want, all, c.result)
			}
		})
	}
}

// TestAServerThatIsDownIsAskedLast until its time is over; if all are down, all are asked.
func TestAServerThatIsDownIsAskedLast(t *testing.T) {
	t.Parallel()
	var works atomic.Bool
	first := start(t, func(w dns.ResponseWriter, q *dns.Msg, udp bool) {
		if works.Load() {
			with("203.0.113.1")(w, q, udp)
		}
	})
	second := start(t, func(w dns.ResponseWriter, q *dns.Msg, udp bool) {
		if q.Question[0].Name != "." {
			with("203.0.113.2")(w, q, udp)
		}
	})
	c := client(Options{Timeout: 3 * time.Second, DownFor: time.Hour}, first.address, second.address)
	if got, outcomes := ask(t, c); got != "203.0.113.2" {
		t.Fatalf("got %s: %s", got, outcomes)
	}
	asked := first.udp.Load() + first.tcp.Load()
	works.Store(true)
	got, outcomes := ask(t, c)
	if got != "203.0.113.2" || first.udp.Load()+first.tcp.Load() != asked {
		t.Errorf("got %s: %s; a server that is down was asked before the others", got, outcomes)
	}
	if !strings.HasPrefix(outcomes.String(), first.address+": not asked again, ") || !strings.Contains(outcomes.String(), " ago: no answer in 3s; ") || outcomes[0].Result != NotAsked {
		t.Errorf("outcomes: %s", outcomes)
	}
	c.states[0].down(time.Now(), -time.Second, "x") // its time is over
	if got, outcomes := ask(t, c); got != "203.0.113.1" {
		t.Errorf("after its time: %s: %s", got, outcomes)
	}
	c.states[0].down(time.Now(), time.Hour, "x")
	c.states[1].down(time.Now(), time.Hour, "x")
	if got, outcomes := ask(t, c); got != "203.0.113.1" {
		t.Errorf("all down: %s: %s", got, outcomes)
	}
}

// TestOneQuestionTriesAServerAgain while others go on without it.
func TestOneQuestionTriesAServerAgain(t *testing.T) {
	var s state
	now := time.Unix(1000, 0)
	claims := func(at time.Time) bool { _, _, ok := s.claim(at, 2*time.Second); return ok }
	if first, second := claims(now), claims(now); !first || !second {
		t.Error("a server that is up is not for everyone")
	}
	s.down(now, 30*time.Second, "x")
	got := []bool{claims(now), claims(now.Add(31 * time.Second)), claims(now.Add(31 * time.Second)), claims(now.Add(34 * time.Second))}
	if d := cmp.Diff([]bool{false, true, false, true}, got); d != "" {
		t.Error(d)
	}
	s.up("udp")
	if !claims(now) {
		t.Error("it answered, and is still down")
	}
}

// TestTCPIsRememberedWhereUDPDoesNotGetThrough saves the next question the wait.
func TestTCPIsRememberedWhereUDPDoesNotGetThrough(t *testing.T) {
	t.Parallel()
	s := start(t, func(w dns.ResponseWriter, q *dns.Msg, udp bool) {
		if !udp {
			with("203.0.113.1")(w, q, udp)
		}
	})
	c := client(Options{Timeout: 4 * time.Second}, s.address)
	for range 2 {
		if got, outcomes := ask(t, c); got != "203.0.113.1" {
			t.Fatalf("got %s: %s", got, outcomes)
		}
	}
	if udp, tcp := s.udp.Load(), s.tcp.Load(); tcp != 2 || udp > 2 {
		t.Errorf("asked %d times over UDP and %d over TCP", udp, tcp)
	}
}

func TestTCPOnly(t *testing.T) {
	t.Parallel()
	s := start(t, with("203.0.113.1"))
	c := New(Options{Servers: []Server{{Address: s.address, TCPOnly: true}}})
	if got, outcomes := ask(t, c); got != "203.0.113.1" || s.udp.Load() != 0 {
		t.Errorf("got %s: %s; %d questions over UDP", got, outcomes, s.udp.Load())
	}
}

// TestALostPacket costs half of the time, not the name.
func TestALostPacket(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	s := start(t, func(w dns.ResponseWriter, q *dns.Msg, udp bool) {
		if udp && n.Add(1) > 1 {
			with("203.0.113.1")(w, q, udp)
		}
	})
	if got, outcomes := ask(t, client(Options{Timeout: 4 * time.Second}, s.address)); got != "203.0.113.1" {
		t.Errorf("got %s: %s", got, outcomes)
	}
}

// TestSeveralAddressesOfOneServer: the first reply counts, a failure as well.
func TestSeveralAddressesOfOneServer(t *testing.T) {
	t.Parallel()
	good, broken, dead := start(t, with("203.0.113.1")), start(t, code(dns.RcodeServerFailure)), start(t, silent)
	nobody := closed(t)
	for name, c := range map[string]struct {
		addresses []string
		want      string
		outcomes  string
	}{
		"the second answers":      {[]string{dead.address, good.address}, "203.0.113.1", good.address + ": NOERROR"},
		"nothing is at the first": {[]string{nobody, good.address}, "203.0.113.1", good.address + ": NOERROR"},
		"the first word counts":   {[]string{broken.address, good.address}, "none", broken.address + ": SERVFAIL"},
		"nothing is at either":    {[]string{nobody, nobody}, "none", nobody + ": nothing listens there (connection refused); " + nobody + ": nothing listens there (connection refused)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, outcomes := ask(t, client(Options{Together: true, Timeout: 30 * time.Second, Limit: time.Minute}, c.addresses...))
			if got != c.want || outcomes.String() != c.outcomes {
				t.Errorf("got %s (%s), want %s (%s)", got, outcomes, c.want, c.outcomes)
			}
		})
	}
}

// TestAQuestionThatEnds says nothing about the server.
func TestAQuestionThatEnds(t *testing.T) {
	t.Parallel()
	s := start(t, silent)
	c := client(Options{Timeout: time.Minute}, s.address, s.address)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for s.udp.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	got, outcomes := c.Ask(ctx, Question(dns.Question{Name: ".", Qtype: dns.TypeNS, Qclass: dns.ClassINET}, nil))
	if got != nil || len(outcomes) != 2 || outcomes[0].Result != Cut || outcomes[1].Result != NotAsked {
		t.Errorf("%v, %s", got, outcomes)
	}
	if _, _, up := c.states[0].claim(time.Now(), 0); !up {
		t.Error("the server is taken for down")
	}
}

// TestSourcePortsVary: who can't see the questions can't guess where an answer must go.
func TestSourcePortsVary(t *testing.T) {
	t.Parallel()
	ports := make(chan string, 64)
	ids := make(chan uint16, 64)
	s := start(t, func(w dns.ResponseWriter, q *dns.Msg, udp bool) {
		ports <- w.RemoteAddr().String()
		ids <- q.Id
		with("203.0.113.1")(w, q, udp)
	})
	c := client(Options{Timeout: 30 * time.Second}, s.address)
	seen, seenIDs := map[string]bool{}, map[uint16]bool{}
	for range 32 {
		ask(t, c)
		seen[<-ports], seenIDs[<-ids] = true, true
	}
	if len(seen) < 16 || len(seenIDs) < 16 {
		t.Errorf("32 questions came from %d ports with %d ids", len(seen), len(seenIDs))
	}
}

// FuzzStream gives a client whatever bytes come over TCP, and as one packet over UDP.
func FuzzStream(f *testing.F) {
	m := reply1(&dns.Msg{Question: []dns.Question{{Name: "www.example.org.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}}, "203.0.113.1")
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0, 0, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, tcp := range []bool{true, false} {
			c := New(Options{Servers: []Server{{Address: "192.0.2.1:53", TCPOnly: tcp}}, Timeout: 20 * time.Millisecond,
				Dial: func(_ context.Context, network string, _ Server) (net.Conn, error) { return newCanned(network, b), nil }})
			got, outcomes := c.Ask(t.Context(), Question(dns.Question{Name: "www.example.org.", Qtype: dns.TypeA, Qclass: dns.ClassINET}, nil))
			if got != nil && (!got.Response || len(got.Question) != 1) || len(outcomes) != 1 {
				t.Fatalf("%v: %s", got, outcomes)
			}
		}
	})
}

// canned is a connection whose other end sends the same bytes, under the id asked with.
type canned struct {
	net.Conn
	udp bool
	b   []byte
	in  []byte
}

func newCanned(network string, b []byte) net.Conn {
	c := &canned{udp: network == "udp", b: b}
	if c.udp {
		return packetCanned{c}
	}
	return c
}

// packetCanned is taken for a packet connection by the library.
type packetCanned struct{ *canned }

func (packetCanned) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, errors.New("not used") }
func (packetCanned) WriteTo([]byte, net.Addr) (int, error)  { return 0, errors.New("not used") }

func (c *canned) Write(p []byte) (int, error) {
	q := p
	if !c.udp {
		q = p[2:]
	}
	reply := append([]byte{}, c.b...)
	if len(reply) >= 2 {
		copy(reply, q[:2])
	}
	if !c.udp {
		c.in = binary.BigEndian.AppendUint16(c.in, uint16(len(reply)))
	}
	c.in = append(c.in, reply...)
	return len(p), nil
}

func (c *canned) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		if c.udp {
			return 0, &net.OpError{Op: "read", Err: fmt.Errorf("nothing more")}
		}
		return 0, io.EOF
	}
	n := copy(p, c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *canned) Close() error                { return nil }
func (c *canned) SetDeadline(time.Time) error { return nil }
func (c *canned) LocalAddr() net.Addr         { return &net.UDPAddr{} }
