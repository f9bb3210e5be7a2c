package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// within bounds each attempt to reach something: what answers, answers at once.
const within = 1500 * time.Millisecond

// networkTries are what a program may try with sockets. Those whose names begin with
// "control: " are what a member does itself, in the same way.
func networkTries() map[string]func() error {
	out := map[string]func() error{
		"control: dial the relay": func() error { return dial("169.254.0.1:8483") },

		"dial the tunnel's far end":     func() error { return dial("169.254.0.1:22") },
		"dial a metadata service":       func() error { return dial("169.254.169.254:80") },
		"dial the subnet's gateway":     func() error { return dial("10.20.0.1:22") },
		"dial an address nobody has":    func() error { return dial("10.20.1.99:80") },
		"dial the host's loopback":      func() error { return dial("127.0.0.1:8480") },
		"dial over IPv6":                func() error { return dial("[fe80::1%eth0]:80") },
		"dial the service's socket":     func() error { return dialUnix("/run/sluice.sock") },
		"dial it through process 1":     func() error { return dialUnix("/proc/1/root/run/sluice.sock") },
		"raw ICMP socket":               func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) },
		"raw IP socket":                 func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW) },
		"raw IPv6 socket":               func() error { return socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6) },
		"packet socket without headers": func() error { return socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0x0300) },
		"VSOCK socket":                  func() error { return family(unix.AF_VSOCK, unix.SOCK_STREAM, 0) },
		"kernel crypto socket":          func() error { return family(unix.AF_ALG, unix.SOCK_SEQPACKET, 0) },
		"XDP socket":                    func() error { return family(unix.AF_XDP, unix.SOCK_RAW, 0) },
		"Bluetooth socket":              func() error { return family(unix.AF_BLUETOOTH, unix.SOCK_RAW, 0) },
		"CAN socket":                    func() error { return family(unix.AF_CAN, unix.SOCK_RAW, 1) },
		"TIPC socket":                   func() error { return family(unix.AF_TIPC, unix.SOCK_DGRAM, 0) },
		"io_uring":                      ioUring,
		"send from any address":         func() error { return option(unix.SOL_IP, unix.IP_TRANSPARENT) },
		"send with a mark":              func() error { return option(unix.SOL_SOCKET, unix.SO_MARK) },
		"send from another address":     sendAs,
		"take an address":               func() error { return netlinkRequest(unix.RTM_NEWADDR) },
		"take a route":                  func() error { return netlinkRequest(unix.RTM_NEWROUTE) },
		"change a neighbour":            func() error { return netlinkRequest(unix.RTM_NEWNEIGH) },
		"change the rules of packets":   socketFilterTable,
	}
	return out
}

// confinedTries are what the member's own filter denies on top.
func confinedTries() map[string]func() error {
	return map[string]func() error{
		"listen": func() error {
			l, err := net.Listen("tcp4", "0.0.0.0:0") //nolint:gosec // it must not be possible
			if err == nil {
				l.Close()
			}
			return err
		},
		"Unix socket": func() error { return socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) },
	}
}

// family makes a socket that must be denied: that this kernel lacks the family is no merit.
func family(domain, kind, proto int) error {
	if err := socket(domain, kind, proto); errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

func dial(addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}

func dialUnix(path string) error {
	c, err := net.DialTimeout("unix", path, within)
	if err != nil {
		return err
	}
	return c.Close()
}

func ioUring() error {
	var params [120]byte
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params[0])), 0)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}

// option sets an option of a UDP socket to 1.
func option(level, name int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.SetsockoptInt(fd, level, name, 1), unix.Close(fd))
}

// sendAs binds to an address that is not the member's, as IP_FREEBIND lets anyone, and sends.
func sendAs() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 20, 0, 99}}); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 53, Addr: [4]byte{10, 20, 0, 2}})
}

// netlinkRequest asks to change the namespace's network. Whoever may do so is told that
// the message is short, which counts as done.
func netlinkRequest(kind uint16) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const head, body = 16, 12
	req := make([]byte, head+body)
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], kind)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_CREATE)
	req[head] = unix.AF_INET
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < head+4 {
		return errors.Join(err, errors.New("no answer"))
	}
	switch errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(answer[head:]))); errno {
	case unix.EPERM, unix.EACCES:
		return errno
	}
	return nil
}

// socketFilterTable opens the interface of nf_tables, which asks for privileges at once.
func socketFilterTable() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const getTables = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE
	req := make([]byte, 20)
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], getTables)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	if _, _, err := unix.Recvfrom(fd, answer, 0); err != nil {
		return err
	}
	if errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(answer[16:]))); errno == unix.EPERM {
		return errno
	}
	return nil
}
