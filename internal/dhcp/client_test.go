package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	ownMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	rogue  = netip.MustParseAddr("192.168.10.66")
	far    = netip.MustParseAddr("10.1.1.1")
	lan    = netip.MustParsePrefix("192.168.10.0/24")
)

// wire is a network on which each message that is sent has the answers that a test says.
type wire struct {
	mu      sync.Mutex
	sent    []*dhcpv4.DHCPv4
	to      []string
	station []net.HardwareAddr // that the frame of each went to; nil: all
	answers func(*dhcpv4.DHCPv4) [][]byte
}

type wireConn struct {
	*wire
	at   net.HardwareAddr
	in   chan []byte
	once sync.Once
	done chan struct{}
}

func (w *wire) open(_ netip.Addr, at net.HardwareAddr) (net.PacketConn, error) {
	return &wireConn{wire: w, at: at, in: make(chan []byte, 1000), done: make(chan struct{})}, nil
}

func (c *wireConn) WriteTo(b []byte, to net.Addr) (int, error) {
	m, err := dhcpv4.FromBytes(b)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent, c.to, c.station = append(c.sent, m), append(c.to, to.String()), append(c.station, c.at)
	for _, a := range c.answers(m) {
		c.in <- a
	}
	return len(b), nil
}

func (c *wireConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case m := <-c.in:
		return copy(b, m), &net.UDPAddr{}, nil
	case <-c.done:
		return 0, nil, net.ErrClosed
	}
}

func (c *wireConn) Close() error                     { c.once.Do(func() { close(c.done) }); return nil }
func (c *wireConn) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (c *wireConn) SetDeadline(time.Time) error      { return nil }
func (c *wireConn) SetReadDeadline(time.Time) error  { return nil }
func (c *wireConn) SetWriteDeadline(time.Time) error { return nil }

// say makes one answer to a message: an offer to a DISCOVER, else an ACK, for an hour.
func say(m *dhcpv4.DHCPv4, from, a netip.Addr, change ...dhcpv4.Modifier) []byte {
	kind := dhcpv4.MessageTypeAck
	if m.MessageType() == dhcpv4.MessageTypeDiscover {
		kind = dhcpv4.MessageTypeOffer
	}
	r, err := dhcpv4.NewReplyFromRequest(m, append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(a.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(from.AsSlice())), dhcpv4.WithLeaseTime(3600)}, change...)...)
	if err != nil {
		panic(err)
	}
	return r.ToBytes()
}

func seconds(code dhcpv4.OptionCode, n uint32) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptGeneric(code, []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}))
}

func without(code dhcpv4.OptionCode) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) { delete(m.Options, code.Code()) }
}

func nak(text string) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) {
		m.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
		m.UpdateOption(dhcpv4.OptMessage(text))
		m.YourIPAddr = net.IPv4zero
	}
}

// fitting are addresses of the upper half.
func fitting(a netip.Addr) error {
	if !netip.MustParsePrefix("192.168.10.128/25").Contains(a) {
		return fmt.Errorf("%s does not fit", a)
	}
	return nil
}

// serverMAC is where server is found; no other machine says where it is.
var serverMAC = net.HardwareAddr{2, 0, 0, 0, 0, 3}

func newClient(w *wire) *Client {
	return &Client{MAC: ownMAC, Open: w.open, Network: lan, Timeout: 300 * time.Millisecond, Patience: time.Second,
		Owner: func(_ context.Context, a netip.Addr) (net.HardwareAddr, error) {
			if a == server {
				return serverMAC, nil
			}
			return nil, nil
		}}
}

// TestRequest: what a network's servers may say to one who asks for an address, and what
// comes of it.
func TestRequest(t *testing.T) {
	t.Parallel()
	type m = *dhcpv4.DHCPv4
	only := func(kind dhcpv4.MessageType, change ...dhcpv4.Modifier) func(m) [][]byte { // changes answers to one kind
		return func(q m) [][]byte {
			if q.MessageType() != kind {
				return [][]byte{say(q, server, first)}
			}
			return [][]byte{say(q, server, first, change...)}
		}
	}
	beside := func(kind dhcpv4.MessageType, extra func(m) []byte) func(m) [][]byte { // something comes before the answer
		return func(q m) [][]byte {
			if q.MessageType() != kind {
				return [][]byte{say(q, server, first)}
			}
			return [][]byte{extra(q), say(q, server, first)}
		}
	}
	discover, request := dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest
	hour := [3]time.Duration{30 * time.Minute, 52*time.Minute + 30*time.Second, time.Hour}
	for name, c := range map[string]struct {
		answers func(m) [][]byte
		want    [3]time.Duration // T1, T2 and life of a lease of first by server
		err     string
	}{
		"one server":                   {only(discover), hour, ""},
		"no mask, no router":           {only(request, without(dhcpv4.OptionSubnetMask), without(dhcpv4.OptionRouter)), hour, ""},
		"10 s":                         {only(request, seconds(dhcpv4.OptionIPAddressLeaseTime, 10)), [3]time.Duration{5 * time.Second, 8750 * time.Millisecond, 10 * time.Second}, ""},
		"for ever":                     {only(request, seconds(dhcpv4.OptionIPAddressLeaseTime, 0xffffffff)), [3]time.Duration{endless / 2, endless / 8 * 7, endless}, ""},
		"for no time":                  {only(request, seconds(dhcpv4.OptionIPAddressLeaseTime, 0)), [3]time.Duration{}, "192.168.10.1 gives 192.168.10.140 for no time"},
		"for an unsaid time":           {only(request, without(dhcpv4.OptionIPAddressLeaseTime)), [3]time.Duration{}, "for no time"},
		"a time of three bytes":        {only(request, dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionIPAddressLeaseTime, []byte{1, 2, 3}))), [3]time.Duration{}, "for no time"},
		"T1 and T2 are 0":              {only(request, seconds(dhcpv4.OptionRenewTimeValue, 0), seconds(dhcpv4.OptionRebindingTimeValue, 0)), hour, ""},
		"T1 and T2 are 1 s":            {only(request, seconds(dhcpv4.OptionRenewTimeValue, 1), seconds(dhcpv4.OptionRebindingTimeValue, 1)), hour, ""},
		"T1 and T2 never come":         {only(request, seconds(dhcpv4.OptionRenewTimeValue, 0xffffffff), seconds(dhcpv4.OptionRebindingTimeValue, 0xffffffff)), hour, ""},
		"T1 and T2 are the server's":   {only(request, seconds(dhcpv4.OptionRenewTimeValue, 60), seconds(dhcpv4.OptionRebindingTimeValue, 120)), [3]time.Duration{time.Minute, 2 * time.Minute, time.Hour}, ""},
		"by a relay":                   {only(request, func(q m) { q.GatewayIPAddr = net.IPv4(192, 168, 10, 2) }), hour, ""},
		"another offers what is unfit": {beside(discover, func(q m) []byte { return say(q, rogue, far) }), hour, ""},
		"another offers for another":   {beside(discover, func(q m) []byte { q2 := *q; q2.TransactionID = dhcpv4.TransactionID{1}; return say(&q2, rogue, second) }), hour, ""},
		"another offers to another MAC": {beside(discover, func(q m) []byte {
			q2 := *q
			q2.ClientHWAddr = net.HardwareAddr{2, 0, 0, 0, 0, 2}
			return say(&q2, rogue, second)
		}), hour, ""},
		"another asks the same":          {beside(discover, func(q m) []byte { return q.ToBytes() }), hour, ""},
		"an ACK in place of an offer":    {beside(discover, func(q m) []byte { return say(q, rogue, second, dhcpv4.WithMessageType(dhcpv4.MessageTypeAck)) }), hour, ""},
		"a nameless offer":               {beside(discover, func(q m) []byte { return say(q, rogue, second, without(dhcpv4.OptionServerIdentifier)) }), hour, ""},
		"an offer by everybody":          {beside(discover, func(q m) []byte { return say(q, netip.AddrFrom4([4]byte{255, 255, 255, 255}), second) }), hour, ""},
		"an offer of nothing":            {beside(discover, func(q m) []byte { return say(q, rogue, netip.IPv4Unspecified()) }), hour, ""},
		"half a message":                 {beside(discover, func(q m) []byte { return say(q, rogue, second)[:200] }), hour, ""},
		"an option beyond the end":       {beside(discover, func(q m) []byte { return append(say(q, rogue, second)[:245], 54, 200, 1) }), hour, ""},
		"nothing at all":                 {beside(discover, func(m) []byte { return nil }), hour, ""},
		"another acknowledges":           {beside(request, func(q m) []byte { return say(q, rogue, first) }), hour, ""},
		"another refuses":                {beside(request, func(q m) []byte { return say(q, rogue, first, nak("no")) }), hour, ""},
		"another address is given first": {beside(request, func(q m) []byte { return say(q, server, second) }), hour, ""},
		"another address is given": {func(q m) [][]byte {
			return [][]byte{say(q, server, map[bool]netip.Addr{true: first, false: second}[q.MessageType() == discover])}
		}, [3]time.Duration{}, "192.168.10.1 answers with 192.168.10.141 in place of 192.168.10.140"},
		"it is refused":           {only(request, nak("gone\x1b[2J\nroot#"+strings.Repeat("!", 200))), [3]time.Duration{}, "the DHCP server 192.168.10.1 refused it (NAK: gone?[2J?root#!!!"},
		"nothing fits":            {func(q m) [][]byte { return [][]byte{say(q, server, far)} }, [3]time.Duration{}, "10.1.1.1 does not fit"},
		"only nameless offers":    {func(q m) [][]byte { return [][]byte{say(q, server, first, without(dhcpv4.OptionServerIdentifier))} }, [3]time.Duration{}, "without a name of its own"},
		"nobody":                  {func(m) [][]byte { return nil }, [3]time.Duration{}, ErrSilent.Error()},
		"offers for others alone": {func(q m) [][]byte { q2 := *q; q2.TransactionID[0]++; return [][]byte{say(&q2, server, first)} }, [3]time.Duration{}, ErrSilent.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := time.Now()
			l, err := newClient(&wire{answers: c.answers}).Request(t.Context(), "m-1", second, fitting)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) || len(err.Error()) > 200 {
					t.Fatalf("%+v, %v; want %q", l, err, c.err)
				}
				return
			}
			if err != nil || l.Address != first || l.Server != server || l.Client != "m-1" || l.Obtained.Before(before) {
				t.Fatalf("%+v, %v; want a lease of %s by %s", l, err, first, server)
			}
			if got := [3]time.Duration{l.Renew.Sub(l.Obtained), l.Rebind.Sub(l.Obtained), l.Expires.Sub(l.Obtained)}; got != c.want {
				t.Errorf("T1, T2, life %v; want %v", got, c.want)
			}
		})
	}
}

// TestRequestIsWellFormed: what is sent to obtain an address is for all, and says what RFC
// 2131 (table 5) wants, whatever a server put into its offer.
func TestRequestIsWellFormed(t *testing.T) {
	t.Parallel()
	w := &wire{answers: func(q *dhcpv4.DHCPv4) [][]byte {
		return [][]byte{say(q, server, first, func(m *dhcpv4.DHCPv4) {
			m.ClientIPAddr, m.GatewayIPAddr, m.ServerIPAddr = first.AsSlice(), rogue.AsSlice(), server.AsSlice()
		})}
	}}
	if _, err := newClient(w).Request(t.Context(), "m-1", second, fitting); err != nil || len(w.sent) != 2 {
		t.Fatalf("%v, %d messages", err, len(w.sent))
	}
	for i, c := range []struct {
		kind         dhcpv4.MessageType
		asks, server netip.Addr
	}{{dhcpv4.MessageTypeDiscover, second, netip.Addr{}}, {dhcpv4.MessageTypeRequest, first, server}} {
		m := w.sent[i]
		for field, ip := range map[string]net.IP{"ciaddr": m.ClientIPAddr, "yiaddr": m.YourIPAddr, "siaddr": m.ServerIPAddr, "giaddr": m.GatewayIPAddr} {
			if !ip.IsUnspecified() {
				t.Errorf("%s has %s in %s", m.MessageType(), ip, field)
			}
		}
		if m.MessageType() != c.kind || w.to[i] != "255.255.255.255:67" || w.station[i] != nil || addrOf(m.RequestedIPAddress()) != c.asks || addrOf(m.ServerIdentifier()) != c.server {
			t.Errorf("sent to %s (%v):\n%s\nwant a %s for %s to all, to be answered by %v", w.to[i], w.station[i], m.Summary(), c.kind, c.asks, c.server)
		}
	}
}

// TestRequestUnanswered: an address that a server may have given, but did not say so in time,
// is given back: nobody else would have it until its lease ends.
func TestRequestUnanswered(t *testing.T) {
	t.Parallel()
	for name, patience := range map[string]time.Duration{"silence": time.Minute, "the end of the time for it": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan bool, tries)
			w := &wire{answers: func(q *dhcpv4.DHCPv4) [][]byte {
				if q.MessageType() == dhcpv4.MessageTypeDiscover {
					return [][]byte{say(q, server, first)}
				}
				if q.MessageType() == dhcpv4.MessageTypeRequest {
					asked <- true
				}
				return nil
			}}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				<-asked
				pause(ctx, patience)
				cancel()
			}()
			if l, err := newClient(w).Request(ctx, "m-1", second, fitting); err == nil {
				t.Fatalf("%+v without an answer", l)
			}
			last := w.sent[len(w.sent)-1]
			if last.MessageType() != dhcpv4.MessageTypeRelease || addrOf(last.ClientIPAddr) != first || addrOf(last.ServerIdentifier()) != server {
				t.Errorf("the last that was sent:\n%s\nwant a RELEASE of %s to %s", last.Summary(), first, server)
			}
		})
	}
}

// TestRequestIsBounded: somebody who answers all the time, and never well, holds nobody up.
func TestRequestIsBounded(t *testing.T) {
	t.Parallel()
	w := &wire{answers: func(*dhcpv4.DHCPv4) [][]byte { return nil }}
	c := newClient(w)
	var noise sync.WaitGroup
	c.Open = func(a netip.Addr, at net.HardwareAddr) (net.PacketConn, error) {
		conn, err := w.open(a, at)
		noise.Go(func() {
			for wc := conn.(*wireConn); ; time.Sleep(10 * time.Millisecond) {
				w.mu.Lock()
				var b []byte
				if len(w.sent) > 0 {
					b = say(w.sent[0], rogue, first, dhcpv4.WithMessageType(dhcpv4.MessageTypeInform))
				}
				w.mu.Unlock()
				select {
				case wc.in <- b:
				case <-wc.done:
					return
				}
			}
		})
		return conn, err
	}
	begun := time.Now()
	if _, err := c.Request(t.Context(), "m-1", first, fitting); !errors.Is(err, ErrSilent) {
		t.Errorf("%v; want %v", err, ErrSilent)
	}
	if d := time.Since(begun); d > 30*time.Second {
		t.Errorf("it took %s", d)
	}
	noise.Wait()
}

// TestExtend: what may come of asking for more time.
func TestExtend(t *testing.T) {
	t.Parallel()
	type m = *dhcpv4.DHCPv4
	for name, c := range map[string]struct {
		of      netip.Addr // the lease's server
		rebind  bool
		answers func(m) [][]byte
		to      string     // in one frame to that machine, if it is found
		server  netip.Addr // that the lease is by then
		err     string
	}{
		"a server that can't be found":     {rogue, false, func(q m) [][]byte { return [][]byte{say(q, rogue, first)} }, "192.168.10.66:67", rogue, ""},
		"its server":                       {server, false, func(q m) [][]byte { return [][]byte{say(q, server, first)} }, "192.168.10.1:67", server, ""},
		"behind a relay":                   {far, false, func(q m) [][]byte { return [][]byte{say(q, far, first)} }, "255.255.255.255:67", far, ""},
		"another refuses":                  {server, false, func(q m) [][]byte { return [][]byte{say(q, rogue, first, nak("mine"))} }, "192.168.10.1:67", netip.Addr{}, ErrSilent.Error()},
		"another extends":                  {server, false, func(q m) [][]byte { return [][]byte{say(q, rogue, first)} }, "192.168.10.1:67", netip.Addr{}, ErrSilent.Error()},
		"its server refuses":               {server, false, func(q m) [][]byte { return [][]byte{say(q, server, first, nak(""))} }, "192.168.10.1:67", netip.Addr{}, "the DHCP server 192.168.10.1 refused it (NAK)"},
		"another address":                  {server, false, func(q m) [][]byte { return [][]byte{say(q, server, second)} }, "192.168.10.1:67", netip.Addr{}, "192.168.10.141 in place of 192.168.10.140"},
		"an answer to somebody else":       {server, false, func(q m) [][]byte { q2 := *q; q2.TransactionID[0]++; return [][]byte{say(&q2, server, first)} }, "192.168.10.1:67", netip.Addr{}, ErrSilent.Error()},
		"rebound by another":               {server, true, func(q m) [][]byte { return [][]byte{say(q, rogue, first)} }, "255.255.255.255:67", rogue, ""},
		"one of two does not know it":      {server, true, func(q m) [][]byte { return [][]byte{say(q, rogue, first, nak("unknown")), say(q, server, first)} }, "255.255.255.255:67", server, ""},
		"all that are there don't know it": {server, true, func(q m) [][]byte { return [][]byte{say(q, rogue, first, nak("unknown"))} }, "255.255.255.255:67", netip.Addr{}, "192.168.10.66 refused it (NAK: unknown)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &wire{answers: c.answers}
			old := timed(Lease{Client: "m-1", Address: first, Server: c.of}, time.Now().Add(-time.Hour), time.Hour, 0, 0)
			l, err := newClient(w).Extend(t.Context(), old, c.rebind)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%+v, %v; want %q", l, err, c.err)
				}
			} else if err != nil || l.Server != c.server || l.Address != first || l.Client != "m-1" || time.Until(l.Expires) < 50*time.Minute {
				t.Fatalf("%+v, %v; want an hour by %s", l, err, c.server)
			}
			if w.to[0] != c.to || !w.sent[0].ClientIPAddr.Equal(first.AsSlice()) || w.sent[0].ServerIdentifier() != nil || w.sent[0].RequestedIPAddress() != nil {
				t.Errorf("sent to %s:\n%s\nwant it to %s, with the address as ciaddr alone (RFC 2131, 4.3.2)", w.to[0], w.sent[0].Summary(), c.to)
			}
			if alone := c.to == "192.168.10.1:67"; alone != (w.station[0].String() == serverMAC.String()) {
				t.Errorf("to %s in a frame to %q", c.to, w.station[0])
			}
		})
	}
}

// TestSentAlone: what is said to servers without an answer names client, server and address
// where RFC 2131 (table 5) wants them.
func TestSentAlone(t *testing.T) {
	t.Parallel()
	l := Lease{Client: "m-1", Address: first, Server: server}
	for name, c := range map[string]struct {
		tell         func(*Client) error
		kind         dhcpv4.MessageType
		to           string
		ciaddr, asks netip.Addr
	}{
		"release": {func(c *Client) error { return c.Release(l) }, dhcpv4.MessageTypeRelease, "192.168.10.1:67", first, netip.Addr{}},
		"decline": {func(c *Client) error { return c.Decline(l) }, dhcpv4.MessageTypeDecline, "255.255.255.255:67", netip.IPv4Unspecified(), first},
	} {
		w := &wire{answers: func(*dhcpv4.DHCPv4) [][]byte { return nil }}
		if err := c.tell(newClient(w)); err != nil || len(w.sent) != 1 {
			t.Fatalf("%s: %v, %d messages", name, err, len(w.sent))
		}
		m := w.sent[0]
		if alone := c.to == "192.168.10.1:67"; alone != (w.station[0].String() == serverMAC.String()) {
			t.Errorf("%s: to %s in a frame to %q", name, c.to, w.station[0])
		}
		if m.MessageType() != c.kind || w.to[0] != c.to || addrOf(m.ClientIPAddr) != c.ciaddr || addrOf(m.RequestedIPAddress()) != c.asks ||
			addrOf(m.ServerIdentifier()) != server || !slices.Equal(m.Options.Get(dhcpv4.OptionClientIdentifier), []byte("\x00m-1")) {
			t.Errorf("%s: sent to %s:\n%s", name, w.to[0], m.Summary())
		}
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	c := &Client{Owner: func(_ context.Context, a netip.Addr) (net.HardwareAddr, error) {
		if a == first {
			return ownMAC, nil
		}
		return nil, nil
	}}
	if err := c.Probe(t.Context(), second); err != nil {
		t.Errorf("of an address that nobody has: %v", err)
	}
	if taken := new(TakenError); !errors.As(c.Probe(t.Context(), first), &taken) || taken.MAC.String() != ownMAC.String() {
		t.Errorf("of one that somebody has: %v", c.Probe(t.Context(), first))
	}
}

// FuzzAnswer: whatever comes in a frame, it is refused or gives a lease that makes sense.
func FuzzAnswer(f *testing.F) {
	q, err := dhcpv4.NewDiscovery(ownMAC)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{say(q, server, first), say(q, server, first, dhcpv4.WithMessageType(dhcpv4.MessageTypeAck)), say(q, server, first, nak("no")), q.ToBytes()} {
		p := pack(b, server, &net.UDPAddr{IP: net.IPv4bcast, Port: clientPort})
		f.Add(p)
		f.Add(p[:len(p)-20])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		b, _, ok := parse(p)
		if !ok {
			return
		}
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		_ = judgeOffer(m, fitting)
		want, now := Lease{Client: "m-1", Address: first, Server: server}, time.Now()
		err = judgeAnswer(m, want, true)
		if err != nil {
			_ = err.Error()
			return
		}
		if l := leaseOf(want, m, now); !l.Renew.After(now) || l.Rebind.Before(l.Renew) || !l.Expires.After(l.Rebind) || !named(l.Server) {
			t.Errorf("%+v", l)
		}
	})
}
