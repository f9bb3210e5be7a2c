package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// ErrSilent is the error of an exchange that no server answered.
var ErrSilent = errors.New("no DHCP server answered")

// errIgnored is the judgement on a message that is no answer to ours.
var errIgnored = errors.New("no answer")

// RefusedError is a server's NAK.
type RefusedError struct {
	Server netip.Addr
	Text   string // the server's own
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("the DHCP server %s refused it (NAK)", e.Server)
	}
	return fmt.Sprintf("the DHCP server %s refused it (NAK: %s)", e.Server, e.Text)
}

// TakenError says that somebody uses an address which a server gave.
type TakenError struct {
	Address netip.Addr
	MAC     net.HardwareAddr // that answers for it
}

// Error implements error.
func (e *TakenError) Error() string {
	return fmt.Sprintf("the DHCP server gives %s, which %s has already", e.Address, e.MAC)
}

// judgeOffer says what is wrong with an offer. It may come from anybody.
func judgeOffer(m *dhcpv4.DHCPv4, fits func(netip.Addr) error) error {
	server, a := addrOf(m.ServerIdentifier()), addrOf(m.YourIPAddr)
	switch {
	case m.MessageType() != dhcpv4.MessageTypeOffer:
		return errIgnored
	case !named(server):
		return errors.New("a DHCP server offers an address without a name of its own (option 54)")
	case !a.Is4() || a.IsUnspecified():
		return fmt.Errorf("the DHCP server %s offers no address", server)
	}
	return fits(a)
}

// judgeAnswer says what is wrong with the answer to a request for an address: it must be
// its server's, but any server may extend a lease that is rebound.
func judgeAnswer(m *dhcpv4.DHCPv4, want Lease, anybody bool) error {
	server, a := addrOf(m.ServerIdentifier()), addrOf(m.YourIPAddr)
	if !named(server) || server != want.Server && !anybody {
		return errIgnored
	}
	switch m.MessageType() {
	case dhcpv4.MessageTypeNak:
		return &RefusedError{Server: server, Text: printable(m.Message())}
	case dhcpv4.MessageTypeAck:
		if a != want.Address {
			return fmt.Errorf("the DHCP server %s answers with %s in place of %s", server, a, want.Address)
		}
		if m.IPAddressLeaseTime(0) <= 0 {
			return fmt.Errorf("the DHCP server %s gives %s for no time", server, a)
		}
		return nil
	}
	return errIgnored
}

func named(server netip.Addr) bool {
	return server.Is4() && !server.IsUnspecified() && !server.IsMulticast() && server != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// shortest is what a renewal is apart from the next, in a lease that is long enough: a
// server that wants to be asked each second is not obeyed.
const shortest = 10 * time.Second

// leaseOf is the lease that an ACK to a request gives, counted from when that was sent.
func leaseOf(l Lease, ack *dhcpv4.DHCPv4, sent time.Time) Lease {
	l.Server = addrOf(ack.ServerIdentifier())
	life, t1, t2 := ack.IPAddressLeaseTime(0), ack.IPAddressRenewalTime(0), ack.IPAddressRebindingTime(0)
	if t1 < shortest {
		t1 = 0
	}
	if t2 < shortest {
		t2 = 0
	}
	return timed(l, sent, life, t1, t2)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// printable is a server's text as it may stand in a log: short, and without what moves a
// terminal's cursor.
func printable(s string) string {
	const most = 100
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
