package dhcp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// ErrSilent is the error of an exchange that no server answered.
var ErrSilent = errors.New("no DHCP server answered")

// RefusedError is a server's NAK.
type RefusedError struct {
	Server netip.Addr
	Text   string // the server's own
}

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("the DHCP server %s refused it (NAK%s)", e.Server, text(e.Text))
}

func text(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

// Client speaks with the DHCP servers of a network through one interface of it. All
// messages carry that interface's MAC, behind which every address is found; the
// clients differ by their identifiers.
type Client struct {
	MAC net.HardwareAddr // Required
	// Open gives a connection for one exchange, which sends as an address. Required.
	Open func(from netip.Addr) (net.PacketConn, error)
	// Network is the prefix that the interface is on: servers elsewhere are reached
	// through a relay. Required.
	Network netip.Prefix
	// Timeout is the wait for the first answer; each repetition doubles it. Default 1 s.
	Timeout time.Duration
}

// tries is how often a message is sent before its exchange fails.
const tries = 3

// Request obtains an address for a client, the hinted one if the server agrees.
func (c *Client) Request(ctx context.Context, client string, hint netip.Addr) (Lease, error) {
	var got *nclient4.Lease
	options := c.options(client)
	if hint.IsValid() {
		options = append(options, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(hint.AsSlice())))
	}
	err := c.exchange(netip.Addr{}, netip.Addr{}, func(n *nclient4.Client) error {
		offer, err := n.DiscoverOffer(ctx, options...)
		if err == nil { // the library adds the offered address itself
			got, err = n.RequestFromOffer(ctx, offer, c.options(client)...)
		}
		return err
	})
	if err != nil {
		return Lease{}, err
	}
	return leaseOf(client, got.ACK, time.Now())
}

// Extend asks for more time, the lease's own server or, to rebind, any.
func (c *Client) Extend(ctx context.Context, l Lease, rebind bool) (Lease, error) {
	to := l.Server
	options := append(c.options(l.Client), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(l.Address.AsSlice()))
	if rebind || !c.Network.Contains(to) {
		to = netip.Addr{}
	}
	request, err := dhcpv4.New(append(options, dhcpv4.WithHwAddr(c.MAC))...)
	if err != nil {
		return Lease{}, err
	}
	var answer *dhcpv4.DHCPv4
	err = c.exchange(l.Address, to, func(n *nclient4.Client) (err error) {
		answer, err = n.SendAndRead(ctx, n.RemoteAddr(), request, nclient4.IsMessageType(dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak))
		if err == nil && answer.MessageType() == dhcpv4.MessageTypeNak {
			err = &nclient4.ErrNak{Nak: answer}
		}
		return err
	})
	if err != nil {
		return Lease{}, err
	}
	renewed, err := leaseOf(l.Client, answer, time.Now())
	if err == nil && renewed.Address != l.Address {
		err = fmt.Errorf("the DHCP server %s answers with %s in place of %s", renewed.Server, renewed.Address, l.Address)
	}
	return renewed, err
}

// Release gives an address back. No server answers that.
func (c *Client) Release(l Lease) error {
	to := l.Server
	if !c.Network.Contains(to) {
		to = netip.Addr{}
	}
	return c.exchange(l.Address, to, func(n *nclient4.Client) error {
		m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease), dhcpv4.WithHwAddr(c.MAC), dhcpv4.WithClientIP(l.Address.AsSlice()),
			clientID(l.Client), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(l.Server.AsSlice())))
		if err == nil {
			_, err = n.SendAndRead(expired(), n.RemoteAddr(), m, nil)
		}
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

// options are those of each request. Answers are broadcast: nobody has the address yet.
func (c *Client) options(client string) []dhcpv4.Modifier {
	return []dhcpv4.Modifier{clientID(client), dhcpv4.WithBroadcast(true),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue)}
}

// clientID is opaque to servers: its type is 0, no hardware's.
func clientID(client string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptClientIdentifier(append([]byte{0}, client...)))
}

// exchange runs f with a connection of its own; an invalid server is every server.
func (c *Client) exchange(from, server netip.Addr, f func(*nclient4.Client) error) error {
	conn, err := c.Open(from)
	if err != nil {
		return err
	}
	to := &net.UDPAddr{IP: net.IPv4bcast, Port: serverPort}
	if server.IsValid() {
		to.IP = server.AsSlice()
	}
	n, err := nclient4.NewWithConn(conn, c.MAC, nclient4.WithServerAddr(to), nclient4.WithTimeout(cmp.Or(c.Timeout, time.Second)), nclient4.WithRetry(tries))
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	defer n.Close() //nolint:errcheck // a socket of one exchange
	err = f(n)
	var nak *nclient4.ErrNak
	switch {
	case errors.As(err, &nak):
		return &RefusedError{Server: addrOf(nak.Nak.ServerIdentifier()), Text: nak.Nak.Message()}
	case errors.Is(err, nclient4.ErrNoResponse), errors.Is(err, context.DeadlineExceeded):
		return ErrSilent
	}
	return err
}

// leaseOf reads a server's ACK.
func leaseOf(client string, ack *dhcpv4.DHCPv4, now time.Time) (Lease, error) {
	l := Lease{Client: client, Address: addrOf(ack.YourIPAddr), Server: addrOf(ack.ServerIdentifier())}
	if !l.Address.Is4() || l.Address.IsUnspecified() {
		return Lease{}, fmt.Errorf("the DHCP server %s answers without an address", l.Server)
	}
	return timed(l, now, ack.IPAddressLeaseTime(0), ack.IPAddressRenewalTime(0), ack.IPAddressRebindingTime(0)), nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
