// Package arp asks a network whose an IPv4 address is before it is used there, says whose
// it is from then on, and hears who else says so (RFC 5227), by frames on one interface.
//
// It gives no address to an interface and answers no question: the kernel does.
// hostnet/linux is its only caller.
package arp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How an address is asked for. RFC 5227 waits for seconds; a network behind an uplink answers
// within milliseconds, and a query waits meanwhile.
const (
	probes = 3
	apart  = 100 * time.Millisecond
)

const (
	request = 1
	size    = 28 // of a packet for Ethernet and IPv4
)

// Conn sends and receives ARP on an interface. Close ends it.
type Conn struct {
	f    *os.File
	raw  syscall.RawConn
	link int
	mac  net.HardwareAddr
}

// Listen opens a connection on an interface of the calling thread's network namespace,
// which speaks as that interface's MAC.
func Listen(link int, mac net.HardwareAddr) (*Conn, error) {
	if len(mac) != 6 {
		return nil, fmt.Errorf("arp: %q is no Ethernet address", mac)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network(unix.ETH_P_ARP), Ifindex: link})
	f := os.NewFile(uintptr(fd), "arp")
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Conn{f: f, raw: raw, link: link, mac: mac}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.f.Close() }

// Owner asks whose an address is, and returns the MAC of the first that has it or asks for
// it, too; nil after 300 ms in which nobody did.
func (c *Conn) Owner(ctx context.Context, a netip.Addr) (net.HardwareAddr, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 1514)
	for range probes {
		end := time.Now().Add(apart)
		if err := c.f.SetReadDeadline(end); err != nil {
			return nil, err
		}
		if err := c.send(netip.IPv4Unspecified(), a); err != nil {
			return nil, fmt.Errorf("asking whose %s is: %w", a, err)
		}
		for time.Now().Before(end) { // whatever else is heard takes none of the time
			k, err := c.f.Read(buf)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, err
			}
			if mac := claims(buf[:k], a, c.mac); mac != nil {
				return mac, nil
			}
		}
	}
	return nil, nil
}

// Listen calls f with each address that another says to have, and its MAC, until Close. An
// interface that goes down says nothing until it is up again.
func (c *Conn) Listen(f func(a netip.Addr, mac net.HardwareAddr)) error {
	buf := make([]byte, 1514)
	for {
		k, err := c.f.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			return fmt.Errorf("listening for who has which address: %w", err)
		}
		if a, mac, ok := sender(buf[:k]); ok && !a.IsUnspecified() && mac.String() != c.mac.String() {
			f(a, mac)
		}
	}
}

// Announce tells the network that the interface's MAC has an address: who knows another
// for it takes this one.
func (c *Conn) Announce(a netip.Addr) error { return c.send(a, a) }

func (c *Conn) send(from, about netip.Addr) error {
	p := packet(c.mac, from, about)
	all := &unix.SockaddrLinklayer{Protocol: network(unix.ETH_P_ARP), Ifindex: c.link, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	var sent error
	err := c.raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), p, 0, all)
		return !errors.Is(sent, unix.EAGAIN)
	})
	return errors.Join(err, sent)
}

// packet is a question for an address: from nobody a probe, from that address an announcement.
func packet(mac net.HardwareAddr, from, about netip.Addr) []byte {
	p := make([]byte, size)
	binary.BigEndian.PutUint16(p[0:], 1) // Ethernet
	binary.BigEndian.PutUint16(p[2:], unix.ETH_P_IP)
	p[4], p[5] = 6, 4
	binary.BigEndian.PutUint16(p[6:], request)
	copy(p[8:14], mac)
	copy(p[14:18], from.AsSlice())
	copy(p[24:28], about.AsSlice())
	return p
}

// sender says who sent a packet of ARP, and as whom: the zero address is nobody.
func sender(p []byte) (a netip.Addr, mac net.HardwareAddr, ok bool) {
	if len(p) < size || binary.BigEndian.Uint16(p) != 1 || binary.BigEndian.Uint16(p[2:]) != unix.ETH_P_IP || p[4] != 6 || p[5] != 4 {
		return a, nil, false
	}
	return netip.AddrFrom4([4]byte(p[14:18])), net.HardwareAddr(append([]byte(nil), p[8:14]...)), true
}

// claims returns the MAC of another that says, or is about to say, that it has an address.
func claims(p []byte, a netip.Addr, own net.HardwareAddr) net.HardwareAddr {
	from, mac, ok := sender(p)
	if !ok || mac.String() == own.String() {
		return nil
	}
	probe := binary.BigEndian.Uint16(p[6:]) == request && from.IsUnspecified() && netip.AddrFrom4([4]byte(p[24:28])) == a
	if from != a && !probe {
		return nil
	}
	return mac
}

func network(v uint16) uint16 { return v<<8 | v>>8 }
