package dhcp

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// Client speaks with the DHCP servers of a network through one interface of it. All
// messages carry that interface's MAC, behind which every address is found; the
// clients differ by their identifiers.
type Client struct {
	MAC net.HardwareAddr // Required
	// Open gives a connection for one exchange, which sends as an address, to a station of
	// the network; a nil one is all of them. Required.
	Open func(from netip.Addr, to net.HardwareAddr) (net.PacketConn, error)
	// Owner asks the network whose an address is: nil is nobody. Required.
	Owner func(ctx context.Context, a netip.Addr) (net.HardwareAddr, error)
	// Network is the prefix that the interface is on: servers elsewhere are reached
	// through a relay. Required.
	Network netip.Prefix
	// Timeout is the wait for the first answer; each repetition doubles it. Default 1 s.
	Timeout time.Duration
	// Patience is for how long a good answer is waited for after one that is none: a
	// network may have several servers, and one of them may be nobody's. Default 300 ms.
	Patience time.Duration
}

// tries is how often a message is sent before its exchange fails.
const tries = 3

// Request obtains an address that fits, the hinted one if a server agrees. Offers that don't
// fit are left alone.
func (c *Client) Request(ctx context.Context, client string, hint netip.Addr, fits func(netip.Addr) error) (Lease, error) {
	discover, err := dhcpv4.NewDiscovery(c.MAC, append(c.options(client), requested(hint))...)
	if err != nil {
		return Lease{}, err
	}
	var got Lease
	err = c.exchange(ctx, netip.Addr{}, netip.Addr{}, func(n *nclient4.Client) error {
		offer, err := c.ask(ctx, n, discover, func(m *dhcpv4.DHCPv4) error { return judgeOffer(m, fits) })
		if err != nil {
			return err
		}
		request, err := dhcpv4.NewRequestFromOffer(offer, append(c.options(client), dhcpv4.WithClientIP(net.IPv4zero))...)
		if err != nil {
			return err
		}
		want, sent := Lease{Client: client, Address: addrOf(offer.YourIPAddr), Server: addrOf(offer.ServerIdentifier())}, time.Now()
		ack, err := c.ask(ctx, n, request, func(m *dhcpv4.DHCPv4) error { return judgeAnswer(m, want, false) })
		switch {
		case err == nil:
			got = leaseOf(want, ack, sent)
		case errors.Is(err, ErrSilent) || ctx.Err() != nil:
			return errors.Join(err, c.Release(want)) // its ACK may be lost: the address would be, too
		}
		return err
	})
	return got, err
}

// Extend asks for more time, the lease's own server or, to rebind, any (RFC 2131, 4.4.5).
func (c *Client) Extend(ctx context.Context, l Lease, rebind bool) (Lease, error) {
	var to netip.Addr
	if !rebind {
		to = c.near(l.Server)
	}
	request, err := dhcpv4.New(append(c.options(l.Client), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithClientIP(l.Address.AsSlice()), dhcpv4.WithHwAddr(c.MAC))...)
	if err != nil {
		return Lease{}, err
	}
	var got Lease
	err = c.exchange(ctx, l.Address, to, func(n *nclient4.Client) error {
		sent := time.Now()
		ack, err := c.ask(ctx, n, request, func(m *dhcpv4.DHCPv4) error { return judgeAnswer(m, l, rebind) })
		if err == nil {
			got = leaseOf(l, ack, sent)
		}
		return err
	})
	return got, err
}

// Release gives an address back. No server answers that.
func (c *Client) Release(l Lease) error {
	return c.tell(l.Address, c.near(l.Server), dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease), dhcpv4.WithClientIP(l.Address.AsSlice()),
		dhcpv4.WithHwAddr(c.MAC), clientID(l.Client), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice())))
}

// Decline tells a server that an address which it gave is somebody else's. No server
// answers that.
func (c *Client) Decline(l Lease) error {
	return c.tell(netip.Addr{}, netip.Addr{}, dhcpv4.WithMessageType(dhcpv4.MessageTypeDecline), requested(l.Address),
		dhcpv4.WithHwAddr(c.MAC), clientID(l.Client), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice())))
}

// Probe is a TakenError if somebody on the network has an address.
func (c *Client) Probe(ctx context.Context, a netip.Addr) error {
	mac, err := c.Owner(ctx, a)
	if err == nil && mac != nil {
		return &TakenError{Address: a, MAC: mac}
	}
	return err
}

// options are those of each request. Answers are broadcast: nobody has the address yet.
func (c *Client) options(client string) []dhcpv4.Modifier {
	return []dhcpv4.Modifier{clientID(client), dhcpv4.WithBroadcast(true), dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(nclient4.MaxMessageSize)),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue)}
}

// clientID is opaque to servers: its type is 0, no hardware's.
func clientID(client string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptClientIdentifier(append([]byte{0}, client...)))
}

// requested asks for an address, if there is one to ask for.
func requested(a netip.Addr) dhcpv4.Modifier {
	if !a.IsValid() {
		return func(*dhcpv4.DHCPv4) {}
	}
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(a.AsSlice()))
}

// near is a server that is on the network; the zero address, every server, for one that
// is reached through a relay.
func (c *Client) near(server netip.Addr) netip.Addr {
	if !c.Network.Contains(server) {
		return netip.Addr{}
	}
	return server
}

// station is where a server's frames go: to all, if it does not say where it is. Many drop
// what comes in a frame to all and is addressed to one (RFC 1122, 3.3.6).
func (c *Client) station(ctx context.Context, server netip.Addr) net.HardwareAddr {
	if !server.IsValid() {
		return nil
	}
	mac, err := c.Owner(ctx, server)
	if err != nil {
		return nil
	}
	return mac
}

// exchange runs f with a connection of its own; an invalid server is every server.
func (c *Client) exchange(ctx context.Context, from, server netip.Addr, f func(*nclient4.Client) error) error {
	conn, err := c.Open(from, c.station(ctx, server))
	if err != nil {
		return err
	}
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: serverPort}
	if server.IsValid() {
		to.IP = server.AsSlice()
	}
	n, err := nclient4.NewWithConn(conn, c.MAC, nclient4.WithServerAddr(to), nclient4.WithTimeout(c.timeout()), nclient4.WithRetry(tries))
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	defer n.Close() //nolint:errcheck // a socket of one exchange
	return f(n)
}

func (c *Client) timeout() time.Duration { return cmp.Or(c.Timeout, time.Second) }

// ask sends a message until an answer is judged good. One that is ignored is as if it had
// not come; any other is the exchange's error, unless a good one follows.
func (c *Client) ask(ctx context.Context, n *nclient4.Client, m *dhcpv4.DHCPv4, judge func(*dhcpv4.DHCPv4) error) (*dhcpv4.DHCPv4, error) {
	// A bound of its own: each message that is no answer begins the library's wait anew.
	limit, cancel := context.WithTimeout(ctx, c.timeout()*(1<<tries-1))
	defer cancel()
	var bad error
	answer, err := n.SendAndRead(limit, n.RemoteAddr(), m, func(a *dhcpv4.DHCPv4) bool {
		err := judge(a)
		if err != nil && bad == nil && !errors.Is(err, errIgnored) {
			bad = err
			time.AfterFunc(cmp.Or(c.Patience, 300*time.Millisecond), cancel)
		}
		return err == nil
	})
	switch {
	case err == nil:
		return answer, nil
	case bad != nil:
		return nil, bad
	case errors.Is(err, nclient4.ErrNoResponse), errors.Is(err, context.DeadlineExceeded):
		return nil, ErrSilent
	}
	return nil, err
}

// tell sends a message that nobody answers.
func (c *Client) tell(from, server netip.Addr, of ...dhcpv4.Modifier) error {
	m, err := dhcpv4.New(of...)
	if err != nil {
		return err
	}
	return c.exchange(context.Background(), from, server, func(n *nclient4.Client) error {
		_, err := n.SendAndRead(expired(), n.RemoteAddr(), m, nil)
		if errors.Is(err, context.Canceled) {
			return nil // sent, and not waited for
		}
		return err
	})
}

func expired() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
