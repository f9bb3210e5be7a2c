package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/wire"
)

// control is one side of a control connection. Messages go out through an outbox, so
// that a peer which does not read holds up nobody but the connection's own writer.
type control struct {
	conn    net.Conn
	every   time.Duration
	timeout time.Duration
	onBeat  func() // called with each heartbeat sent; nil for none
	onHeard func() // called with each message that came; nil for none
	kick    chan struct{}

	mu     sync.Mutex
	outbox []message // at most one of each type
}

func newControl(conn net.Conn, every, timeout time.Duration) *control {
	return &control{conn: conn, every: every, timeout: timeout, kick: make(chan struct{}, 1)}
}

// post queues a message in place of an unsent one of its type. It never blocks.
func (c *control) post(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.IndexFunc(c.outbox, func(o message) bool { return o.Type == m.Type }); i >= 0 {
		c.outbox[i] = m
	} else {
		c.outbox = append(c.outbox, m)
	}
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// send writes one message; the bound is the heartbeat's. Calls must not overlap.
func (c *control) send(m message) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	return wire.Write(c.conn, m)
}

// receive waits for one message, no longer than the heartbeat's time-out.
func (c *control) receive() (message, error) {
	var m message
	if err := c.conn.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return m, err
	}
	err := wire.Read(c.conn, &m, maxMessage)
	return m, err
}

// run writes heartbeats and the outbox, and hands every other message to handle, until
// the connection fails, handle gives an error or ctx ends. It closes the connection.
func (c *control) run(ctx context.Context, handle func(message) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var writer sync.WaitGroup
	writer.Go(func() { c.write(ctx) })
	defer writer.Wait()
	defer cancel()
	defer c.abort()
	defer context.AfterFunc(ctx, c.abort)()
	for {
		m, err := c.receive()
		if err != nil {
			return fmt.Errorf("control connection: %w", err)
		}
		if c.onHeard != nil {
			c.onHeard()
		}
		if m.Type == msgHeartbeat {
			continue
		}
		if err := handle(m); err != nil {
			return err
		}
	}
}

// write sends what is due until ctx ends or the connection fails, which it makes the
// reader notice.
func (c *control) write(ctx context.Context) {
	defer c.abort()
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if c.onBeat != nil {
				c.onBeat()
			}
			if c.send(message{Type: msgHeartbeat}) != nil {
				return
			}
		case <-c.kick:
			if c.flush() != nil {
				return
			}
		}
	}
}

// flush sends the outbox.
func (c *control) flush() error {
	c.mu.Lock()
	out := c.outbox
	c.outbox = nil
	c.mu.Unlock()
	for _, m := range out {
		if err := c.send(m); err != nil {
			return err
		}
	}
	return nil
}

// abort ends the connection at once: nothing on it is worth waiting for.
func (c *control) abort() { abortConn(c.conn) }

// abortConn resets a connection, so that the peer and everything between notice at once,
// and nothing is sent that could be taken for an orderly end.
func abortConn(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if l, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = conn.Close()
}
