// Package splice joins two TCP connections so that what one side sends, the other
// receives, as nearly as possible as if they were one connection: half-closes and
// resets pass through, back-pressure holds, and the kernel moves the bytes
// (splice(2)) without this process reading them.
//
// It owns the two connections from the call on, and nothing else: accepting,
// dialling, limits and accounts are its callers', the tunnel's relay and the private
// endpoints of a host.
package splice

import (
	"io"
	"net"
	"sync"
)

// Conns copies both ways between a and b until both directions have ended, and
// closes both. It returns the bytes that went each way, and nil if both directions
// ended with an orderly close, else the error that ended the first one. To end it from
// outside, close either connection.
//
// The parameters are bare TCP connections on purpose: any wrapper would move the
// bytes through this process.
func Conns(a, b *net.TCPConn) (aToB, bToA int64, err error) {
	p := &pair{a: a, b: b}
	var wg sync.WaitGroup
	wg.Go(func() { aToB = p.copy(b, a) })
	wg.Go(func() { bToA = p.copy(a, b) })
	wg.Wait()
	return aToB, bToA, p.close()
}

// pair is two connections that are being joined.
type pair struct {
	a, b *net.TCPConn

	mu      sync.Mutex
	err     error
	watches sync.WaitGroup
}

// copy moves bytes from src to dst until src ends, passes the end on, and returns
// how many there were. Anything but an orderly end breaks the pair.
func (p *pair) copy(dst, src *net.TCPConn) int64 {
	n, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		p.reset(err)
		return n
	}
	p.watches.Go(func() { p.watch(src) })
	return n
}

// watch waits for a reset of a connection that has sent its end: nobody reads it any
// more, so that without this a peer that resets while the other direction is silent
// would never be noticed. It ends when the pair is closed.
func (p *pair) watch(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	var fault error
	err = raw.Read(func(fd uintptr) bool {
		fault = pendingError(int(fd))
		return fault != nil
	})
	if err == nil {
		p.reset(fault)
	}
}

// reset breaks both connections at once: each peer sees a reset, not an end that
// it could take for the whole.
func (p *pair) reset(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return
	}
	p.err = err
	for _, c := range []*net.TCPConn{p.a, p.b} {
		// Errors mean that the connection is already closed, which is the aim.
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// close ends the pair after both directions have, and returns what broke it, if
// anything did.
func (p *pair) close() error {
	p.mu.Lock()
	err := p.err
	p.mu.Unlock()
	// Errors are of no use: both directions have ended, or were reset.
	_ = p.a.Close()
	_ = p.b.Close()
	p.watches.Wait()
	return err
}
