package relay

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// addrOf is the tunnel address of a member's connection.
func addrOf(c *net.TCPConn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// enter admits a connection of a known member below its limit.
func (r *Relay) enter(c *net.TCPConn) (netip.Addr, bool) {
	addr := addrOf(c)
	if !r.opts.Known(addr) {
		r.opts.Logger.Warn("relay refuses an unknown tunnel address", "tunnelAddress", addr)
		return addr, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.members[addr]
	if a == nil {
		a = &account{open: map[*net.TCPConn]struct{}{}}
		r.members[addr] = a
	}
	if len(a.open) >= r.opts.MaxPerMember {
		a.past.Refused++
		r.opts.Logger.Warn("relay refuses a connection over the member's limit", "tunnelAddress", addr, "limit", r.opts.MaxPerMember)
		return addr, false
	}
	a.past.Accepted++
	a.open[c] = struct{}{}
	return addr, true
}

// refuse counts a connection that could not be relayed.
func (r *Relay) refuse(c *net.TCPConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.members[addrOf(c)]; a != nil {
		a.past.Refused++
	}
}

// leave books a connection that is over. The account of a member that is gone, too, goes
// with its last connection: the address may become another's.
func (r *Relay) leave(addr netip.Addr, c *net.TCPConn, up, down int64) {
	known := r.opts.Known(addr)
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.members[addr]
	delete(a.open, c)
	a.past.ToService += up
	a.past.ToMember += down
	if !known && len(a.open) == 0 {
		delete(r.members, addr)
	}
}

// Stats returns the accounts of all members by tunnel address.
func (r *Relay) Stats() map[netip.Addr]Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[netip.Addr]Stats, len(r.members))
	for addr, a := range r.members {
		s := a.past
		s.Open = len(a.open)
		for c := range a.open {
			received, sent := transferred(c)
			s.ToService += received
			s.ToMember += sent
		}
		all[addr] = s
	}
	return all
}

// transferred asks the kernel what an open connection has received, and what of that
// which was sent has arrived: the bytes never pass through this process.
func transferred(c *net.TCPConn) (received, sent int64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			received, sent = int64(info.Bytes_received), int64(info.Bytes_acked)
		}
	})
	return received, sent
}
