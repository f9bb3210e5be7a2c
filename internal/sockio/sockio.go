// Package sockio makes the system calls of TCP connections cheap for short messages.
//
// Go tells its scheduler of each system call, since it may block. In a process that was
// idle the first one wakes the scheduler's monitor thread, which costs more than the call itself:
// 8 µs each time on a virtual machine, and the monitor's own time beside it. Sockets of the network
// poller never block, so a Conn makes its calls without a word.
//
// It owns nothing but the calls: deadlines, closing and waiting are the net package's. Whatever
// carries queries may use it.
package sockio

import (
	"io"
	"net"
	"os"
	"syscall"
)

// Socket is a TCP connection, or something that has one.
type Socket interface {
	net.Conn
	syscall.Conn
	SetKeepAliveConfig(net.KeepAliveConfig) error
	SetLinger(sec int) error
}

// maxWrite is the longest write without a word to the scheduler: over loopback and veth a
// write does the receiver's work as well, and a long one would keep others from running.
const maxWrite = 16 << 10

// Conn is a Socket with quick calls.
type Conn struct {
	Socket
	raw syscall.RawConn
}

// New makes a Conn of a connection, which is the Conn's from then on.
func New(s Socket) (*Conn, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Conn{s, raw}, nil
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var n int
	var errno syscall.Errno
	if err := c.raw.Read(func(fd uintptr) bool {
		n, errno = read(fd, p)
		return errno != syscall.EAGAIN
	}); err != nil {
		return 0, err
	}
	return c.done("read", n, errno)
}

// ReadNow takes what has come already, and doesn't wait. It says nothing of errors: the next
// Read meets them.
func (c *Conn) ReadNow(p []byte) (n int) {
	_ = c.raw.Read(func(fd uintptr) bool {
		n, _ = read(fd, p)
		return true
	})
	return max(n, 0)
}

// Quiet reports whether the connection is open and nothing has come on it.
func (c *Conn) Quiet() (quiet bool) {
	err := c.raw.Control(func(fd uintptr) {
		var b [1]byte
		_, errno := peek(fd, &b)
		quiet = errno == syscall.EAGAIN
	})
	return err == nil && quiet
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) > maxWrite || len(p) == 0 {
		return c.Socket.Write(p)
	}
	done := 0
	var errno syscall.Errno
	if err := c.raw.Write(func(fd uintptr) bool {
		for done < len(p) {
			var n int
			if n, errno = write(fd, p[done:]); errno != 0 {
				return errno != syscall.EAGAIN
			}
			done += n
		}
		return true
	}); err != nil {
		return done, err
	}
	if errno != 0 {
		return done, c.failed("write", errno)
	}
	return done, nil
}

func (c *Conn) done(op string, n int, errno syscall.Errno) (int, error) {
	switch {
	case errno != 0:
		return 0, c.failed(op, errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func (c *Conn) failed(op string, errno syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno)}
}

// Quick gives a TCP connection quick calls. Any other is returned as it is.
func Quick(conn net.Conn) net.Conn {
	if s, ok := conn.(Socket); ok {
		if quick, err := New(s); err == nil {
			return quick
		}
	}
	return conn
}

// Listener gives what it accepts quick calls.
type Listener struct{ net.Listener }

// Accept implements net.Listener.
func (l Listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Quick(conn), nil
}
