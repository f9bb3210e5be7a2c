package tunnel

import (
	"bufio"
	"crypto/tls"
	"sync"
)

// Sizes of a data connection's buffers: requests are short, and of a long answer what a
// reader has room for comes to it directly. The trailers of an answer must fit in.
const (
	readBuffer  = 8 << 10
	writeBuffer = 16 << 10
)

// dataConn is one data connection. Two goroutines share it in turns: its own, in serve,
// which reads while nothing is expected and until the first byte of an answer, and the
// requester's, which reads the answer.
type dataConn struct {
	m    *member
	conn *tls.Conn
	r    *bufio.Reader
	w    *bufio.Writer

	busy  bool       // guarded by m.mu: a request has it
	first chan error // from serve: the first byte of an answer is there, or why not
	done  chan bool  // to serve: the requester is through; true if it can be used again

	abortOnce sync.Once
	gone      chan struct{} // closed by abort
}

func newDataConn(m *member, conn *tls.Conn) *dataConn {
	return &dataConn{
		m: m, conn: conn,
		r:     bufio.NewReaderSize(conn, readBuffer),
		w:     bufio.NewWriterSize(conn, writeBuffer),
		first: make(chan error, 1),
		done:  make(chan bool, 1),
		gone:  make(chan struct{}),
	}
}

// abort resets the connection. It may be called from anywhere and never blocks.
func (d *dataConn) abort() {
	d.abortOnce.Do(func() {
		close(d.gone)
		abortConn(d.conn)
	})
}

// serve watches the connection until it ends. A member that goes away is noticed while
// its connection is idle; one that speaks without being asked loses the connection, since
// the next request would take what it said for its answer.
func (d *dataConn) serve() {
	defer d.abort()
	if !d.m.add(d) {
		return
	}
	defer d.m.remove(d)
	for {
		_, err := d.r.Peek(1)
		if d.m.removeIdle(d) {
			return
		}
		d.first <- err
		select {
		case reusable := <-d.done:
			if !reusable {
				return
			}
		case <-d.gone:
			return
		}
	}
}
