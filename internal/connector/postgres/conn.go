package postgres

import (
	"context"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// resetTimeout bounds the wait for the answer to a reset that was sent when the
	// last query ended. Usually it has long come.
	resetTimeout = 2 * time.Second
	// probeAfter is how long a connection is idle before it is looked at for having
	// been closed by the server.
	probeAfter = time.Second
	// maxPast is how old a session's past may be when a query of the same user begins,
	// and how long an idle connection keeps one.
	maxPast = 100 * time.Millisecond
	// discardAll undoes what a rollback leaves: prepared statements and advisory locks.
	discardAll = "discard all"
	// abortTimeout bounds a cancel request and the goodbye after it.
	abortTimeout = 10 * time.Second
	killTimeout  = time.Second
)

// conn is a connection of a pool.
type conn struct {
	pool *pool
	pg   *pgconn.PgConn
	in   *wire
	// resetting is the pipeline in which the answer to the reset of the session waits
	// unread; nil if none was sent.
	resetting *pgconn.Pipeline
	// past is since when the session holds what a query's rollback does not undo, zero
	// while it is as it was at sign-in; user is whose query that was.
	past time.Time
	user string
	// unclean is set for a user who must not see that past: it is discarded first.
	unclean   bool
	idleSince time.Time
}

func newConn(p *pool, s *session) *conn { return &conn{pool: p, pg: s.pg, in: s.in} }

// suits reports whether a user's query may run in the session as it is now.
func (c *conn) suits(user string, now time.Time) bool {
	return c.past.IsZero() || user != "" && c.user == user && now.Sub(c.past) < maxPast
}

// forget notes that the session is as it was at sign-in, or will be by its next use.
func (c *conn) forget() { c.past, c.user, c.unclean = time.Time{}, "", false }

// discardPast has the session reset before anything else, and waits for that.
func (c *conn) discardPast(ctx context.Context) error {
	if !c.unclean {
		return nil
	}
	if _, err := c.query(ctx, discardAll); err != nil {
		return resetError(err)
	}
	c.forget()
	return nil
}

// beginReset has an idle session reset, and leaves the answer for its next use.
func (c *conn) beginReset() {
	p := c.pg.StartPipeline(context.Background())
	p.SendQueryParams(discardAll, nil, nil, nil, nil)
	p.SendPipelineSync()
	_ = p.Flush() // or ready will find the connection closed
	c.resetting = p
	c.forget()
}

// ready reports whether an idle connection can serve: the server still holds it, and
// has reset the session.
func (c *conn) ready() bool {
	if c.pg.IsClosed() {
		return false
	}
	if p := c.resetting; p != nil {
		c.resetting = nil
		nc := c.pg.Conn()
		if nc.SetDeadline(time.Now().Add(resetTimeout)) != nil || p.Close() != nil || c.pg.TxStatus() != 'I' {
			return false
		}
		if nc.SetDeadline(time.Time{}) != nil {
			return false
		}
		c.in.rest()
	}
	return time.Since(c.idleSince) < probeAfter || c.in.isEmpty() && isQuiet(c.pg.Conn())
}

// isQuiet looks, without waiting or reading, whether the peer has closed or said
// anything unasked, which an idle server does only to say goodbye.
func isQuiet(nc net.Conn) bool {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = t.NetConn()
	}
	c, ok := nc.(interface{ Quiet() bool })
	return !ok || c.Quiet()
}

// kill ends an idle connection.
func (c *conn) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	_ = c.pg.Close(ctx)
}

// abort ends a connection on which a statement may still run.
func (c *conn) abort() {
	ctx, cancel := context.WithTimeout(context.Background(), abortTimeout)
	defer cancel()
	if !c.pg.IsClosed() {
		_ = c.pg.CancelRequest(ctx)
		_ = c.pg.Close(ctx)
		return
	}
	// The library noticed first, and does the same by itself.
	select {
	case <-c.pg.CleanupDone():
	case <-ctx.Done():
		_ = c.pg.Conn().Close()
	}
}
