package tunnel

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// watchAfter is how old a request is before a goroutine watches whether the service
	// gives it up. Most have been answered by then, and cost no goroutine.
	watchAfter = 3 * time.Millisecond
	// drainLimit bounds what is read of a body that the handler left.
	drainLimit = 256 << 10
	// lingering is how long an answer whose request was not read to the end has to arrive.
	lingering = time.Second
)

// answerer answers the requests of one data connection, one after the other, with
// HTTP/1.1. It is not an http.Server because that starts a goroutine and ends it again for
// each request, to notice a client that goes away: a third of the time of a short query.
type answerer struct {
	conn    *parkedConn
	r       *bufio.Reader
	handler http.Handler
	active  func(bool) // told when a request begins and ends
	log     func(msg string, args ...any)
}

// run answers until the connection ends.
func (a *answerer) run(ctx context.Context) {
	defer a.conn.Close()
	for {
		req, err := http.ReadRequest(a.r)
		if err != nil {
			return
		}
		a.active(true)
		again := a.answer(ctx, req)
		if !again {
			return
		}
		a.active(false)
	}
}

// answer runs the handler. It reports whether the connection can be used again.
func (a *answerer) answer(ctx context.Context, req *http.Request) (again bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body := &countedBody{from: req.Body}
	body.ended = req.Body == http.NoBody
	req.Body = body
	res := newResponse(a.conn)
	defer res.release()
	w := &watch{a: a, cancel: cancel, body: body}
	w.begin()
	whole := a.handle(res, req.WithContext(ctx))
	w.end()
	if !whole || res.hijacked {
		return false
	}
	unread := !body.drain()
	if res.finish(unread || req.Close) != nil {
		return false
	}
	if unread {
		a.linger()
	}
	return !unread && !req.Close
}

// handle reports whether the handler came to its end.
func (a *answerer) handle(w http.ResponseWriter, req *http.Request) (whole bool) {
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			a.log("a request's handler failed by a defect", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	a.handler.ServeHTTP(w, req)
	return true
}

// linger lets an answer arrive before the reset that unread bytes would cause.
func (a *answerer) linger() {
	_ = a.conn.CloseWrite()
	_ = a.conn.SetReadDeadline(time.Now().Add(lingering))
	_, _ = io.Copy(io.Discard, a.r)
}

// countedBody is a request's body that knows whether it was read to its end.
type countedBody struct {
	from io.ReadCloser

	mu    sync.Mutex // the watch looks
	ended bool
}

// Read implements io.Reader.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if err == io.EOF {
		b.mu.Lock()
		b.ended = true
		b.mu.Unlock()
	}
	return n, err
}

// Close leaves the rest: drain decides what becomes of it.
func (b *countedBody) Close() error { return nil }

func (b *countedBody) atEnd() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended
}

// drain reads what the handler has left, if that is little, and reports whether the end was reached.
func (b *countedBody) drain() bool {
	if !b.atEnd() {
		_, _ = io.CopyN(io.Discard, b, drainLimit)
	}
	return b.atEnd()
}

// watch ends a request's context when the service gives the request up, which it does by
// breaking the connection.
type watch struct {
	a      *answerer
	cancel context.CancelFunc
	body   *countedBody
	timer  *time.Timer

	mu      sync.Mutex
	over    bool
	reading chan struct{} // set while a goroutine reads; closed at its end
}

func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(watchAfter, w.look)
}

// look begins to read ahead, once the request's body is through.
func (w *watch) look() {
	w.mu.Lock()
	if w.over {
		w.mu.Unlock()
		return
	}
	if !w.body.atEnd() {
		w.timer.Reset(watchAfter)
		w.mu.Unlock()
		return
	}
	w.reading = make(chan struct{})
	w.mu.Unlock()
	defer close(w.reading)
	if _, err := w.a.r.Peek(1); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.cancel()
	}
}

// end stops the watch. The connection's reader is free again when it returns.
func (w *watch) end() {
	w.timer.Stop()
	w.mu.Lock()
	w.over = true
	reading := w.reading
	w.mu.Unlock()
	if reading == nil {
		return
	}
	_ = w.a.conn.SetReadDeadline(time.Unix(1, 0))
	<-reading
	_ = w.a.conn.SetReadDeadline(time.Time{})
}
