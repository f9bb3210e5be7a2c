package tunnel

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
)

// parkedConn is a member's data connection as its http.Server sees it: without the
// TLS type, whose negotiated protocol the server would not know, and with large writes batched.
type parkedConn struct {
	*tls.Conn
	batch  *batchConn  // nil: not over TCP
	served atomic.Bool // a request came on it
	closed chan struct{}
	once   sync.Once
}

func newParkedConn(conn *tls.Conn) *parkedConn {
	batch, _ := conn.NetConn().(*batchConn)
	return &parkedConn{Conn: conn, batch: batch, closed: make(chan struct{})}
}

// Write sends p; its TLS records leave together.
func (c *parkedConn) Write(p []byte) (int, error) {
	if c.batch == nil || len(p) <= tlsRecord {
		return c.Conn.Write(p)
	}
	c.batch.begin()
	n, err := c.Conn.Write(p)
	if flushed := c.batch.end(); err == nil {
		err = flushed
	}
	return n, err
}

// CloseWrite is embedded: an http.Server that ends a connection with part of the request
// unread uses it, so that its answer arrives before the reset.

// Close ends the connection with TLS's own end.
func (c *parkedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// abort resets the connection.
func (c *parkedConn) abort() { abortConn(c.Conn) }

// oneConn is a listener of one connection: Accept gives it, and then waits for its end.
type oneConn struct {
	conn  *parkedConn
	given bool
}

// Accept implements net.Listener.
func (l *oneConn) Accept() (net.Conn, error) {
	if l.given {
		<-l.conn.closed
		return nil, net.ErrClosed
	}
	l.given = true
	return l.conn, nil
}

// Close implements net.Listener. The connection is its server's to close.
func (l *oneConn) Close() error { return nil }

// Addr implements net.Listener.
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }
