package linux

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/resolver/upstream"
)

// nameServer answers every name with one address in a namespace, over UDP and TCP.
type nameServer struct {
	asked atomic.Int64
	from  atomic.Value // of the last question: "udp 198.51.100.1"
}

func serveNames(t *testing.T, path, addr string, answer string) *nameServer {
	t.Helper()
	s := &nameServer{}
	var pc net.PacketConn
	var l net.Listener
	in(t, path, func() (err error) {
		if pc, err = net.ListenPacket("udp4", addr); err == nil {
			l, err = net.Listen("tcp4", addr)
		}
		return err
	})
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		s.asked.Add(1)
		host, _, _ := net.SplitHostPort(w.RemoteAddr().String())
		s.from.Store(w.RemoteAddr().Network() + " " + host)
		m := new(dns.Msg).SetReply(q)
		if answer == "" {
			m.Rcode = dns.RcodeNameError
		} else if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 600}, A: net.ParseIP(answer)}}
		}
		m.RecursionAvailable = true
		_ = w.WriteMsg(m)
	})
	for _, server := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		started, done := make(chan struct{}), make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(done)
			_ = server.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			_ = server.Shutdown()
			<-done
		})
	}
	return s
}

// resolve asks the network's resolver from a member, and gives the address, or the code
// and the reason.
func resolve(t *testing.T, path string, n *Network, uid, name string) string {
	t.Helper()
	var c net.Conn
	in(t, path, func() (err error) {
		c, err = net.Dial("udp4", n.Resolvers(uid, "gateways")[0].String())
		return err
	})
	defer c.Close()
	client := dns.Client{Timeout: 20 * time.Second}
	m, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(1232, false), &dns.Conn{Conn: c, UDPSize: 1232})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			return a.A.String()
		}
	}
	var text strings.Builder
	text.WriteString(dns.RcodeToString[m.Rcode])
	for _, o := range m.IsEdns0().Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			text.WriteString(": " + e.ExtraText)
		}
	}
	return text.String()
}

func wantName(t *testing.T, path string, n *Network, uid, name, want string) {
	t.Helper()
	if got := resolve(t, path, n, uid, name); got != want {
		t.Errorf("%s is %q, want %q", name, got, want)
	}
}

// TestServersOfANetwork: they are asked through the network and its NAT gateway, in their
// order, and only while a rule does not stand against it.
func TestServersOfANetwork(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	world := serveNames(t, l.world, labWorldAddr+":53", "203.0.113.7")
	onHost := serveNames(t, l.host, "127.0.0.1:5300", "203.0.113.99")
	vn := corp("u1")
	vn.DNS = core.GoalDNS{Servers: []string{labWorldAddr + ":54", labWorldAddr + ":53"}, Timeout: core.Duration(2 * time.Second)}
	m := member(vn, 1, 1)
	n := l.up(func(o *Options) { o.Upstreams = []string{"127.0.0.1:5300"} })
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}
	at := portOf(t, l.set(n, cfg), m)
	wantName(t, at, n, "u1", "www.example.org.", "203.0.113.7")
	if from := world.from.Load(); from != "udp "+labHostAddr {
		t.Errorf("the server was asked from %v, not through the NAT gateway", from)
	}
	wantName(t, at, n, "u1", "orders.corp.internal.", "10.20.1.4")
	wantName(t, at, n, "u1", "nobody.corp.internal.", "NXDOMAIN: private zone corp.internal has no name nobody.corp.internal")
	before := world.asked.Load()
	wantName(t, at, n, "u1", "www.example.org.", "203.0.113.7")
	if world.asked.Load() != before {
		t.Error("an answer that is kept was asked for again")
	}

	denied := cloneVNet(vn)
	denied.DNS = core.GoalDNS{Servers: []string{labWorldAddr + ":53"}, Timeout: core.Duration(500 * time.Millisecond)}
	denied.NSGs[0].Rules = append(denied.NSGs[0].Rules, core.SecurityRule{
		Name: "no-public-dns", Priority: 200, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny, Source: []string{"PlatformDNS"},
	})
	cfg.VNets = []core.GoalVNet{denied}
	l.set(n, cfg)
	if got := resolve(t, at, n, "u1", "www.example.org."); !strings.HasPrefix(got, "SERVFAIL: "+labWorldAddr+": ") {
		t.Errorf("a rule against the resolver's questions: %s", got)
	}
	if onHost.asked.Load() != 0 {
		t.Error("the host's servers were asked, and the network has its own")
	}

	cfg.VNets[0].DNS = core.GoalDNS{}
	l.set(n, cfg)
	wantName(t, at, n, "u1", "www.example.org.", "203.0.113.99")
}

// TestAServerOutOfReach: the network has no way to it, and the host's own way is not taken.
func TestAServerOutOfReach(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	world := serveNames(t, l.world, labWorldAddr+":53", "203.0.113.7")
	vn := corp("u1")
	vn.Subnets[0].NATGateway, vn.NATGateways = "", nil
	vn.DNS.Servers = []string{labWorldAddr + ":53"}
	m := member(vn, 1, 1)
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}), m)
	wantName(t, at, n, "u1", "www.example.org.", "SERVFAIL: "+labWorldAddr+": no route to it")
	if world.asked.Load() != 0 {
		t.Error("the server was asked all the same")
	}
}

// TestAServerBehindAnEndpoint: an endpoint carries TCP, to a target that the host reaches.
func TestAServerBehindAnEndpoint(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	server := serveNames(t, l.host, "127.0.0.1:5353", "203.0.113.8")
	vn := withEndpoint(corp("u1"), "dns", "10.20.1.53", 53, "127.0.0.1:5353")
	vn.DNS.Servers = []string{"10.20.1.53:53"}
	m := member(vn, 1, 1)
	n := l.up()
	at := portOf(t, l.set(n, hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}), m)
	wantName(t, at, n, "u1", "www.example.org.", "203.0.113.8")
	if from := server.from.Load(); from != "tcp 127.0.0.1" {
		t.Errorf("it was asked from %v", from)
	}
}

// TestNetworksShareNoAnswers gives two networks a zone of one name, and servers that differ.
func TestNetworksShareNoAnswers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var vns []core.GoalVNet
	var ports []hostnet.Port
	for i, uid := range []string{"red", "blue"} {
		vn := corp(uid)
		vn.Zones = []core.GoalZone{{Name: "corp.internal", Records: []core.GoalRecord{{
			Name: "orders.corp.internal", Type: core.DNSTypeA, Values: []string{fmt.Sprintf("10.20.1.%d", 4+i)},
		}}}}
		port := 5300 + i
		serveNames(t, l.world, netip.AddrPortFrom(netip.MustParseAddr(labWorldAddr), uint16(port)).String(), fmt.Sprintf("203.0.113.%d", i))
		vn.DNS.Servers = []string{fmt.Sprintf("%s:%d", labWorldAddr, port)}
		vns, ports = append(vns, vn), append(ports, member(vn, 1, 1+i))
	}
	n := l.up()
	s := l.set(n, hostnet.Config{VNets: vns, Ports: ports})
	for range 2 { // the second time from what is kept
		for i, vn := range vns {
			at := portOf(t, s, ports[i])
			wantName(t, at, n, vn.UID, "orders.corp.internal.", fmt.Sprintf("10.20.1.%d", 4+i))
			wantName(t, at, n, vn.UID, "www.example.org.", fmt.Sprintf("203.0.113.%d", i))
		}
	}
}

// TestAMembersOwnServers: a member asks a data source's servers from its own interface, and
// its rules decide.
func TestAMembersOwnServers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	world := serveNames(t, l.world, labWorldAddr+":53", "203.0.113.7")
	vn := corp("u1")
	m := member(vn, 1, 1)
	n := l.up()
	cfg := hostnet.Config{VNets: []core.GoalVNet{vn}, Ports: []hostnet.Port{m}}
	at := portOf(t, l.set(n, cfg), m)
	ask := func(timeout time.Duration) (*dns.Msg, string) {
		c := upstream.New(upstream.Options{
			Servers: []upstream.Server{{Address: labWorldAddr + ":53"}}, Timeout: timeout,
			Dial: func(ctx context.Context, network string, s upstream.Server) (c net.Conn, err error) {
				f, err := os.Open(at)
				if err != nil {
					return nil, err
				}
				defer f.Close()
				err = inside(f, func() (err error) {
					c, err = new(net.Dialer).DialContext(ctx, network, s.Address)
					return err
				})
				return c, err
			},
		})
		got, outcomes := c.Ask(t.Context(), upstream.Question(dns.Question{Name: "far.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}, nil))
		return got, outcomes.String()
	}
	if got, outcomes := ask(20 * time.Second); got == nil || len(got.Answer) != 1 {
		t.Errorf("no answer: %s", outcomes)
	}
	if from := world.from.Load(); from != "udp "+labHostAddr {
		t.Errorf("the server was asked from %v", from)
	}
	before := world.asked.Load()
	denied := cloneVNet(vn)
	denied.NSGs[0].Rules = append(denied.NSGs[0].Rules, core.SecurityRule{
		Name: "no-dns", Priority: 200, Direction: core.Outbound, Access: core.Deny, Protocol: core.ProtocolAny, Destination: []string{"Internet"}, DestinationPorts: []string{"53"},
	})
	cfg.VNets = []core.GoalVNet{denied}
	l.set(n, cfg)
	if got, outcomes := ask(time.Second); got != nil || outcomes != labWorldAddr+": no answer in 1s" || world.asked.Load() != before {
		t.Errorf("denied: %v, %s", got, outcomes)
	}
}
