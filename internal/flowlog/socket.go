package flowlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	readBuffer = 128 << 10
	// gatherFor is how long messages gather in the socket after the first: reading many
	// at once is what keeps the log cheap.
	gatherFor = 100 * time.Millisecond
	// requestTimeout bounds each request to the kernel.
	requestTimeout = 10 * time.Second
)

// Messages of nfnetlink_log, and how it reports.
const (
	ulogPacket      = 0
	ulogConfig      = 1
	ulogCommand     = 1
	ulogMode        = 2
	ulogTimeout     = 4
	ulogQueue       = 5
	ulogFlags       = 6
	ulogBind        = 1
	ulogCopyPacket  = 2
	ulogSequence    = 1
	ulogCopyBytes   = 80 // the longest IPv4 header, and ports
	ulogQueueLength = 64
)

// socket is a netlink socket that the kernel sends to by itself. It belongs to the
// namespace of the thread that opens it.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
}

// openSocket opens a socket that belongs to multicast groups, a bit for each.
func openSocket(groups uint32, buffer int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer) // as much as an ordinary one may have
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := &socket{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, readBuffer)}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		s.file.Close()
		return nil, err
	}
	return s, nil
}

// openEnds opens a socket for the ends of flows. The kernel keeps an end that finds no
// room and repeats it.
func openEnds(buffer int) (*socket, error) {
	const destroyed = 1 << (unix.NFNLGRP_CONNTRACK_DESTROY - 1)
	s, err := openSocket(destroyed, buffer)
	if err != nil {
		return nil, err
	}
	err = s.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_BROADCAST_ERROR, 1)
	})
	if err != nil {
		s.file.Close()
		return nil, err
	}
	return s, nil
}

// newFlows is the multicast group that tells of each flow that begins.
const newFlows = unix.NFNLGRP_CONNTRACK_NEW

// openBegins opens a socket that says when flows begin. It has little room: one message
// is as good as many.
func openBegins() (*socket, error) {
	const room = 16 << 10
	return openSocket(1<<(newFlows-1), room)
}

// follow enters the group of flows that begin, or leaves it.
func (s *socket) follow(on bool) error {
	option := unix.NETLINK_DROP_MEMBERSHIP
	if on {
		option = unix.NETLINK_ADD_MEMBERSHIP
	}
	return s.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, newFlows) })
}

// openDenied opens a socket for the packets that the ruleset reports to a group.
func openDenied(group uint16, buffer int) (*socket, error) {
	s, err := openSocket(0, buffer)
	if err != nil {
		return nil, err
	}
	big := func(n uint64, size int) []byte { return binary.BigEndian.AppendUint64(nil, n)[8-size:] }
	err = s.ask(group, nl.NewRtAttr(ulogCommand, []byte{ulogBind}))
	if err == nil {
		err = s.ask(group,
			nl.NewRtAttr(ulogMode, append(big(ulogCopyBytes, 4), ulogCopyPacket, 0)),
			nl.NewRtAttr(ulogTimeout, big(uint64(gatherFor/(10*time.Millisecond)), 4)),
			nl.NewRtAttr(ulogQueue, big(ulogQueueLength, 4)),
			nl.NewRtAttr(ulogFlags, big(ulogSequence, 2)))
	}
	if err != nil {
		s.file.Close()
		return nil, fmt.Errorf("asking for group %d: %w", group, err)
	}
	return s, nil
}

// ask configures a log group through the socket that will get its reports.
func (s *socket) ask(group uint16, attrs ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_ULOG<<8|ulogConfig, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{ResId: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, group))})
	for _, a := range attrs {
		req.AddData(a)
	}
	err := s.control(func(fd int) error {
		return unix.Sendto(fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
	if err != nil {
		return err
	}
	if err := s.file.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	defer func() { _ = s.file.SetReadDeadline(time.Time{}) }()
	answer := unix.ETIMEDOUT
	read := func(m syscall.NetlinkMessage) {
		if m.Header.Type == unix.NLMSG_ERROR && m.Header.Seq == req.Seq && len(m.Data) >= 4 {
			answer = unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
		}
	}
	if _, err := s.take(read, nil); err != nil || answer != 0 {
		return errors.Join(err, answer)
	}
	return nil
}

func (s *socket) control(fn func(fd int) error) (err error) {
	if e := s.raw.Control(func(fd uintptr) { err = fn(int(fd)) }); e != nil {
		return e
	}
	return err
}

// take waits for messages and hands over all that there are. Lost is called where the
// socket had no room.
func (s *socket) take(fn func(syscall.NetlinkMessage), lost func()) (n int, err error) {
	e := s.raw.Read(func(fd uintptr) bool {
		n, err = s.drain(int(fd), fn, lost)
		return n > 0 || err != nil
	})
	return n, errors.Join(err, e)
}

// rest hands over what there is, without waiting.
func (s *socket) rest(fn func(syscall.NetlinkMessage), lost func()) error {
	return s.control(func(fd int) error { _, err := s.drain(fd, fn, lost); return err })
}

func (s *socket) drain(fd int, fn func(syscall.NetlinkMessage), lost func()) (n int, err error) {
	for {
		size, from, err := unix.Recvfrom(fd, s.buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return n, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			n++
			if lost != nil {
				lost()
			}
			continue
		case err != nil:
			return n, err
		}
		n++
		if sender, ok := from.(*unix.SockaddrNetlink); !ok || sender.Pid != 0 {
			continue // not the kernel
		}
		messages, err := syscall.ParseNetlinkMessage(s.buf[:size])
		if err != nil {
			continue
		}
		for _, m := range messages {
			fn(m)
		}
	}
}

// wake ends a take that waits, and all later ones.
func (s *socket) wake() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) }
