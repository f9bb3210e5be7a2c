package relay

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Handover is a listener of the service whose connections come from a relay in the same
// process: the members' own, without a second connection and a process between.
type Handover struct {
	addr  net.Addr
	conns chan *Handed
	once  sync.Once
	done  chan struct{}
}

// NewHandover makes a listener that says it is at addr.
func NewHandover(addr net.Addr) *Handover {
	return &Handover{addr: addr, conns: make(chan *Handed), done: make(chan struct{})}
}

// Accept implements net.Listener.
func (h *Handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *Handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *Handover) Addr() net.Addr { return h.addr }

// give waits until the service takes the connection.
func (h *Handover) give(ctx context.Context, c *Handed) error {
	select {
	case h.conns <- c:
		return nil
	case <-h.done:
		return net.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Handed is a member's connection in the hands of the service. The relay counts it until
// the service closes it.
type Handed struct {
	*net.TCPConn
	once sync.Once
	over func(up, down int64)
}

// Close implements net.Conn.
func (c *Handed) Close() error {
	c.once.Do(func() { c.over(carried(c.TCPConn)) })
	return c.TCPConn.Close()
}

// carried asks the kernel how much came and went.
func carried(c *net.TCPConn) (up, down int64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			up, down = int64(info.Bytes_received), int64(info.Bytes_acked)
			if info.State == unix.BPF_TCP_CLOSE_WAIT {
				up-- // the kernel counts the peer's end as a byte
			}
		}
	})
	return up, down
}

// handOver gives a member's connection to the service in this process.
func (r *Relay) handOver(ctx context.Context, a *account, member *net.TCPConn) {
	c := &Handed{TCPConn: member}
	c.over = func(up, down int64) {
		r.mu.Lock()
		delete(r.handed, c)
		r.mu.Unlock()
		r.leave(a, up, down)
	}
	r.mu.Lock()
	r.handed[c] = a.addr
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, r.opts.DialTimeout)
	defer cancel()
	if err := r.opts.Handover.give(ctx, c); err != nil {
		r.opts.Logger.Warn("the service does not take a member's connection", "tunnelAddress", a.addr, "error", err)
		r.refuse(a)
		c.abort()
	}
}

// abort resets the connection.
func (c *Handed) abort() {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// handedOf lists the connections of one member.
func (r *Relay) handedOf(addr netip.Addr) (list []*Handed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, of := range r.handed {
		if of == addr {
			list = append(list, c)
		}
	}
	return list
}
