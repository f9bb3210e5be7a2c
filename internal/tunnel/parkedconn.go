package tunnel

import (
	"crypto/tls"
	"sync/atomic"
)

// parkedConn is a member's data connection, with large writes batched.
type parkedConn struct {
	*tls.Conn
	batch  *batchConn  // nil: not over TCP
	served atomic.Bool // a request came on it
}

func newParkedConn(conn *tls.Conn) *parkedConn {
	batch, _ := conn.NetConn().(*batchConn)
	return &parkedConn{Conn: conn, batch: batch}
}

// small is up to where copying parts together costs less than a TLS record for each.
const small = 8 << 10

// writeAll sends parts as if they were one. Small ones share a TLS record, and all
// records leave together.
func (c *parkedConn) writeAll(parts ...[]byte) (err error) {
	if c.batch != nil {
		c.batch.begin()
		defer func() {
			if flushed := c.batch.end(); err == nil {
				err = flushed
			}
		}()
	}
	var gathered []byte
	for _, p := range parts {
		if len(gathered)+len(p) <= small {
			gathered = append(gathered, p...)
			continue
		}
		if err := c.writePart(gathered); err != nil {
			return err
		}
		gathered = nil
		if err := c.writePart(p); err != nil {
			return err
		}
	}
	return c.writePart(gathered)
}

func (c *parkedConn) writePart(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := c.Write(p)
	return err
}

// abort resets the connection.
func (c *parkedConn) abort() { abortConn(c.Conn) }
