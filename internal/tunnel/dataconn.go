package tunnel

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// Sizes of a data connection's buffers: requests are short, and of a long answer what a
// reader has room for comes to it directly. The trailers of an answer must fit in.
const (
	readBuffer  = 8 << 10
	writeBuffer = 16 << 10
)

// dataConn is one data connection. Only a request reads from it: nobody watches while
// it is idle, which would cost two more switches of goroutines for each request.
type dataConn struct {
	m    *member
	conn *tls.Conn
	r    *bufio.Reader
	w    *bufio.Writer

	abortOnce sync.Once
	gone      chan struct{} // closed by abort
}

func newDataConn(m *member, conn *tls.Conn) *dataConn {
	return &dataConn{
		m: m, conn: conn,
		r:    bufio.NewReaderSize(conn, readBuffer),
		w:    bufio.NewWriterSize(conn, writeBuffer),
		gone: make(chan struct{}),
	}
}

// abort resets the connection. It may be called from anywhere and never blocks.
func (d *dataConn) abort() {
	d.abortOnce.Do(func() {
		close(d.gone)
		abortConn(d.conn)
	})
}

// serve keeps the connection in the member's pool until it ends.
func (d *dataConn) serve() {
	defer d.abort()
	if !d.m.add(d) {
		return
	}
	defer d.m.remove(d)
	<-d.gone
}

// quiet reports whether an idle connection can take a request: it is open, and the
// member has said nothing unasked, which the request would take for its answer.
func (d *dataConn) quiet() bool {
	select {
	case <-d.gone:
		return false
	default:
	}
	return d.nothingRead() && nothingCame(d.conn.NetConn())
}

// nothingRead looks at what was read from the socket already. A deadline in the past
// keeps the look from going on to the socket.
func (d *dataConn) nothingRead() bool {
	if d.conn.SetReadDeadline(time.Unix(1, 0)) != nil {
		return false
	}
	_, err := d.r.Peek(1)
	return errors.Is(err, os.ErrDeadlineExceeded) && d.conn.SetReadDeadline(time.Time{}) == nil
}

// nothingCame looks at the socket, without waiting or taking anything.
func nothingCame(conn net.Conn) bool {
	c, ok := conn.(interface{ Quiet() bool })
	return !ok || c.Quiet() // else a test's own
}
