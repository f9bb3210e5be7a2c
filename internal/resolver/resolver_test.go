package resolver

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

// server is a resolver that serves on loopback sockets until the test ends.
type server struct {
	*Resolver
	udp, tcp string
	stop     func() error
}

func start(t *testing.T, o Options) *server {
	t.Helper()
	s := &server{Resolver: New(o)}
	s.serveMore(t)
	return s
}

// serveMore adds a pair of sockets; the fields name the last one.
func (s *server) serveMore(t *testing.T) {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, pc, l) }()
	var ended bool
	s.udp, s.tcp = pc.LocalAddr().String(), l.Addr().String()
	s.stop = func() error {
		cancel()
		ended = true
		select {
		case err := <-done:
			return err
		case <-time.After(30 * time.Second):
			return fmt.Errorf("Serve did not end")
		}
	}
	stop := s.stop
	t.Cleanup(func() {
		if ended {
			return
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func query(t *testing.T, network, address string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 10 * time.Second}
	got, _, err := c.Exchange(m, address)
	if err != nil {
		t.Fatalf("%s: %v", m.Question[0].Name, err)
	}
	got.Compress = true // as it came: Len counts accordingly
	return got
}

func question(name string, kind uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, kind) }

func entry(name, address string) core.GoalRecord {
	return core.GoalRecord{Name: name, Address: netip.MustParseAddr(address)}
}

func corpZones() []core.GoalZone {
	return []core.GoalZone{
		{Name: "corp.internal", Records: []core.GoalRecord{
			entry("orders.corp.internal", "10.20.1.4"),
			entry("a.deep.corp.internal", "10.20.1.5"),
			entry("two.corp.internal", "10.20.1.6"), entry("two.corp.internal", "10.20.1.7"),
			entry("not.in.the.zone", "10.20.1.8"),
		}},
		{Name: "Sub.Corp.Internal", Records: []core.GoalRecord{entry("X.sub.corp.internal", "10.20.2.4")}},
	}
}

func summary(m *dns.Msg) string {
	var parts []string
	for _, rr := range append(m.Answer, m.Ns...) {
		parts = append(parts, strings.Join(strings.Fields(rr.String()), " "))
	}
	flags := ""
	if m.Authoritative {
		flags = " aa"
	}
	return dns.RcodeToString[m.Rcode] + flags + ": " + strings.Join(parts, "; ")
}

func TestAnswersFromTheZones(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Config: Config{Zones: corpZones()}})
	const soa = "corp.internal. 2 IN SOA corp.internal. hostmaster.corp.internal. 1 3600 600 86400 2"
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"orders.corp.internal.", dns.TypeA, "NOERROR aa: orders.corp.internal. 30 IN A 10.20.1.4"},
		{"oRDERs.Corp.INTERNAL.", dns.TypeA, "NOERROR aa: oRDERs.Corp.INTERNAL. 30 IN A 10.20.1.4"},
		{"orders.corp.internal.", dns.TypeANY, "NOERROR aa: orders.corp.internal. 30 IN A 10.20.1.4"},
		{"orders.corp.internal.", dns.TypeAAAA, "NOERROR aa: " + soa},
		{"orders.corp.internal.", dns.TypeMX, "NOERROR aa: " + soa},
		{"two.corp.internal.", dns.TypeA, "NOERROR aa: two.corp.internal. 30 IN A 10.20.1.6; two.corp.internal. 30 IN A 10.20.1.7"},
		{"deep.corp.internal.", dns.TypeA, "NOERROR aa: " + soa},
		{"corp.internal.", dns.TypeA, "NOERROR aa: " + soa},
		{"corp.internal.", dns.TypeSOA, "NOERROR aa: " + soa},
		{"nobody.corp.internal.", dns.TypeA, "NXDOMAIN aa: " + soa},
		{"below.orders.corp.internal.", dns.TypeAAAA, "NXDOMAIN aa: " + soa},
		{"x.sub.corp.internal.", dns.TypeA, "NOERROR aa: x.sub.corp.internal. 30 IN A 10.20.2.4"},
		{"y.sub.corp.internal.", dns.TypeA, "NXDOMAIN aa: sub.corp.internal. 2 IN SOA sub.corp.internal. hostmaster.sub.corp.internal. 1 3600 600 86400 2"},
		{"not.in.the.zone.", dns.TypeA, "REFUSED: "},
		{"xcorp.internal.", dns.TypeA, "REFUSED: "},
		{".", dns.TypeNS, "REFUSED: "},
		{"corp.internal.", dns.TypeAXFR, "REFUSED: "},
	} {
		for network, address := range map[string]string{"udp": s.udp, "tcp": s.tcp} {
			if got := summary(query(t, network, address, question(c.name, c.kind))); got != c.want {
				t.Errorf("%s %s over %s:\n got %s\nwant %s", c.name, dns.TypeToString[c.kind], network, got, c.want)
			}
		}
	}
}

func TestRefusesWhatIsNoQuestionToIt(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Config: Config{Zones: corpZones()}})
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	notify := question("corp.internal.", dns.TypeSOA)
	notify.Opcode = dns.OpcodeNotify
	update := question("corp.internal.", dns.TypeSOA)
	update.Opcode = dns.OpcodeUpdate
	future := question("orders.corp.internal.", dns.TypeA)
	future.SetEdns0(4096, false)
	future.IsEdns0().SetVersion(1)
	for want, m := range map[int]*dns.Msg{
		dns.RcodeRefused: chaos, dns.RcodeNotImplemented: notify, dns.RcodeBadVers: future,
	} {
		if got := query(t, "udp", s.udp, m); got.Rcode != want || len(got.Answer) != 0 {
			t.Errorf("%s\nwant %s, got %s", m, dns.RcodeToString[want], got)
		}
	}
	if got := query(t, "udp", s.udp, update); got.Rcode == dns.RcodeSuccess {
		t.Errorf("a dynamic update was accepted: %s", got)
	}
}

func TestLongAnswersGoOverTCP(t *testing.T) {
	t.Parallel()
	var zone core.GoalZone
	zone.Name = "corp.internal"
	for i := range 200 {
		zone.Records = append(zone.Records, entry("many.corp.internal", fmt.Sprintf("10.20.1.%d", i)))
	}
	s := start(t, Options{Config: Config{Zones: []core.GoalZone{zone}}})
	for name, c := range map[string]struct{ offer, limit int }{
		"without EDNS0": {0, 512}, "EDNS0, 800": {800, 800}, "EDNS0, 4096": {4096, upstream.MaxUDP}, "EDNS0, too small": {100, 512},
	} {
		m := question("many.corp.internal.", dns.TypeA)
		if c.offer > 0 {
			m.SetEdns0(uint16(c.offer), true)
		}
		got := query(t, "udp", s.udp, m)
		if !got.Truncated || got.Len() > c.limit || got.Len() < c.limit/2 || len(got.Answer) == 0 {
			t.Errorf("%s: %d bytes, %d answers, truncated %v; the limit is %d", name, got.Len(), len(got.Answer), got.Truncated, c.limit)
		}
		if (got.IsEdns0() != nil) != (c.offer > 0) || c.offer > 0 && !got.IsEdns0().Do() {
			t.Errorf("%s: the answer's EDNS0 is %v", name, got.IsEdns0())
		}
		got = query(t, "tcp", s.tcp, m)
		if got.Truncated || len(got.Answer) != 200 {
			t.Errorf("%s, over TCP: %d answers, truncated %v", name, len(got.Answer), got.Truncated)
		}
	}
}

// TestGoClient asks as a member does: with Go's own resolver.
func TestGoClient(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Config: Config{Zones: corpZones()}})
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		address := s.udp
		if strings.HasPrefix(network, "tcp") {
			address = s.tcp
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	got, err := r.LookupHost(t.Context(), "two.corp.internal.")
	if diff := cmp.Diff([]string{"10.20.1.6", "10.20.1.7"}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	_, err = r.LookupHost(t.Context(), "nobody.corp.internal.")
	if e, ok := err.(*net.DNSError); !ok || !e.IsNotFound {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestTwoNetworksSeeTheirOwnRecords(t *testing.T) {
	t.Parallel()
	zone := func(address string) []core.GoalZone {
		return []core.GoalZone{{Name: "corp.internal", Records: []core.GoalRecord{entry("orders.corp.internal", address)}}}
	}
	for _, address := range []string{"10.20.1.4", "10.20.1.9"} {
		s := start(t, Options{Config: Config{Zones: zone(address)}})
		want := "NOERROR aa: orders.corp.internal. 30 IN A " + address
		if got := summary(query(t, "udp", s.udp, question("orders.corp.internal.", dns.TypeA))); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestUpdateIsAtomic changes both records of a name while it is asked for.
func TestUpdateIsAtomic(t *testing.T) {
	t.Parallel()
	zone := func(n int) []core.GoalZone {
		return []core.GoalZone{{Name: "z", Records: []core.GoalRecord{
			entry("a.z", fmt.Sprintf("10.0.%d.1", n)), entry("a.z", fmt.Sprintf("10.0.%d.2", n)),
		}}}
	}
	s := start(t, Options{Config: Config{Zones: zone(0)}})
	s.serveMore(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			s.Update(Config{Zones: zone(i % 2)})
			time.Sleep(50 * time.Microsecond)
		}
	}()
	seen := map[string]int{}
	for range 500 {
		seen[summary(query(t, "udp", s.udp, question("a.z.", dns.TypeA)))]++
	}
	cancel()
	<-done
	for got := range seen {
		if strings.Contains(got, "10.0.0.") == strings.Contains(got, "10.0.1.") {
			t.Errorf("old and new at once: %s", got)
		}
	}
	s.Update(Config{})
	if got := query(t, "udp", s.udp, question("a.z.", dns.TypeA)); got.Rcode != dns.RcodeRefused {
		t.Errorf("a zone that is gone answers %s", summary(got))
	}
}

func TestGarbageIsSurvived(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Config: Config{Zones: corpZones()}})
	for network, address := range map[string]string{"udp": s.udp, "tcp": s.tcp} {
		for i := range 50 {
			c, err := net.Dial(network, address)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte(strings.Repeat("\xff\x00\xc0", i*i)))
			_ = c.Close()
		}
		if got := query(t, network, address, question("orders.corp.internal.", dns.TypeA)); len(got.Answer) != 1 {
			t.Errorf("after garbage over %s: %s", network, summary(got))
		}
	}
}

// TestServeEnds stops a resolver with idle and unread TCP connections, and looks for
// what it leaves behind.
func TestServeEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	s := start(t, Options{Config: Config{Zones: corpZones()}})
	idle, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	query(t, "tcp", s.tcp, question("orders.corp.internal.", dns.TypeA))
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if pc, err := net.ListenPacket("udp4", s.udp); err != nil {
		t.Errorf("the socket is still open: %v", err)
	} else {
		_ = pc.Close()
	}
	for end := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > before {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines before, %d after:\n%s", before, now, buf[:runtime.Stack(buf, true)])
	}
}

func TestServeReportsASocketThatFails(t *testing.T) {
	t.Parallel()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- New(Options{}).Serve(context.Background(), pc, l) }()
	time.Sleep(20 * time.Millisecond)
	_ = l.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(30 * time.Second):
		t.Error("Serve goes on without its listener")
	}
}

func TestTCPConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLimitListener(inner, 2)
	accepted := make(chan net.Conn)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	first := <-accepted
	<-accepted
	select {
	case <-accepted:
		t.Error("a third connection was accepted")
	case <-time.After(50 * time.Millisecond):
	}
	_, _ = first.Close(), first.Close() // the second frees nothing
	<-accepted
	_ = l.Close()
	<-ended
}

// TestAClientThatDoesNotReadIsCutOff has answers written until no buffer takes more.
func TestAClientThatDoesNotReadIsCutOff(t *testing.T) {
	t.Parallel()
	zone := core.GoalZone{Name: "z"}
	for i := range 4000 {
		zone.Records = append(zone.Records, entry("a.z", fmt.Sprintf("10.0.%d.%d", i/250, i%250)))
	}
	s := start(t, Options{Config: Config{Zones: []core.GoalZone{zone}}})
	c, err := net.Dial("tcp", s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.(*net.TCPConn).SetReadBuffer(4096)
	conn := &dns.Conn{Conn: c}
	for range 120 {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		if conn.WriteMsg(question("a.z.", dns.TypeA)) != nil {
			break
		}
	}
	time.Sleep(100 * time.Millisecond)
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}
