package ingress

import (
	"sync"

	"github.com/sluice-gateway/sluice/internal/sockio"
)

// aheadSize is how much one system call takes while a result streams in.
const aheadSize = 256 << 10

// aheads holds the buffers between the reads that need them.
var aheads = sync.Pool{New: func() any { b := make([]byte, aheadSize); return &b }}

// aheadConn is the TCP connection under a TLS one. TLS asks for about two records of
// 16 KiB at a time; where more is there already, one system call takes it all. A
// connection that waits for its peer holds no buffer. One goroutine reads at a time:
// TLS sees to that.
type aheadConn struct {
	*sockio.Conn
	buf  *[]byte // nil: nothing was read ahead
	rest []byte  // of *buf
}

// Read implements net.Conn.
func (c *aheadConn) Read(p []byte) (int, error) {
	if c.buf != nil {
		return c.take(p), nil
	}
	n, err := c.Conn.Read(p)
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
	buf := aheads.Get().(*[]byte)
	n := c.ReadNow(*buf)
	if n == 0 {
		aheads.Put(buf)
		return
	}
	c.buf, c.rest = buf, (*buf)[:n]
}

// Quiet reports whether the connection is open and has nothing to be read.
func (c *aheadConn) Quiet() bool { return c.buf == nil && c.Conn.Quiet() }
