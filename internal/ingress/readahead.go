package ingress

import (
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// aheadSize is how much one system call takes while a result streams in.
const aheadSize = 256 << 10

// aheads holds the buffers between the reads that need them.
var aheads = sync.Pool{New: func() any { b := make([]byte, aheadSize); return &b }}

// socket is a TCP connection, or something that has one and counts.
type socket interface {
	net.Conn
	syscall.Conn
	SetKeepAliveConfig(net.KeepAliveConfig) error
	SetLinger(sec int) error
}

// aheadConn is the TCP connection under a TLS one. TLS asks for about two records of
// 16 KiB at a time; where more is there already, one system call takes it all. A
// connection that waits for its peer holds no buffer. One goroutine reads at a time:
// TLS sees to that.
type aheadConn struct {
	socket
	raw  syscall.RawConn
	buf  *[]byte // nil: nothing was read ahead
	rest []byte  // of *buf
}

func newAheadConn(c socket) (*aheadConn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &aheadConn{socket: c, raw: raw}, nil
}

// Read implements net.Conn.
func (c *aheadConn) Read(p []byte) (int, error) {
	if c.buf != nil {
		return c.take(p), nil
	}
	n, err := c.socket.Read(p)
	if err == nil && n == len(p) {
		c.ahead()
	}
	return n, err
}

func (c *aheadConn) take(p []byte) int {
	n := copy(p, c.rest)
	if c.rest = c.rest[n:]; len(c.rest) == 0 {
		aheads.Put(c.buf)
		c.buf = nil
	}
	return n
}

// ahead takes what has come, and doesn't wait. What goes wrong, the next Read meets.
func (c *aheadConn) ahead() {
	buf, n := aheads.Get().(*[]byte), 0
	_ = c.raw.Read(func(fd uintptr) bool {
		n, _ = unix.Read(int(fd), *buf)
		return true
	})
	if n <= 0 {
		aheads.Put(buf)
		return
	}
	c.buf, c.rest = buf, (*buf)[:n]
}
