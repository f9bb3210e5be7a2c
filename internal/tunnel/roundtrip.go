package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// roundTripper sends requests to one member.
type roundTripper struct {
	hub *Hub
	key memberKey
}

// RoundTrip implements http.RoundTripper.
func (rt roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	m := rt.hub.find(rt.key)
	if m == nil {
		closeBody(req)
		return nil, notConnected(rt.key.id)
	}
	for {
		d, err := m.take(req.Context())
		if err != nil {
			closeBody(req)
			return nil, err
		}
		x := &exchange{d: d, ctx: req.Context()}
		if !d.quiet() {
			x.finish(false)
			continue // it broke while it was parked; nothing was sent
		}
		return x.do(req)
	}
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// exchange is one request and its answer on a connection.
type exchange struct {
	d      *dataConn
	ctx    context.Context
	unbind func() bool // ends the watch on ctx
	once   sync.Once
}

// finish gives the connection back, or breaks it. The first call counts.
func (x *exchange) finish(reusable bool) {
	x.once.Do(func() {
		if x.unbind != nil && !x.unbind() {
			reusable = false // ctx ended: the connection is being reset
		}
		if reusable {
			x.d.m.release(x.d)
		} else {
			x.d.abort()
		}
	})
}

// do sends the request and returns the answer's head.
func (x *exchange) do(req *http.Request) (*http.Response, error) {
	x.unbind = context.AfterFunc(x.ctx, x.d.abort)
	sent := x.send(req)
	if _, err := x.d.r.Peek(1); err != nil {
		x.finish(false)
		return nil, x.explain(ErrNoResponse, errors.Join(sent, err))
	}
	resp, err := x.head(req)
	if err != nil {
		x.finish(false)
		return nil, x.explain(ErrBroken, err)
	}
	reusable := sent == nil && !resp.Close
	if resp.Body == http.NoBody {
		x.finish(reusable && x.d.r.Buffered() == 0)
		return resp, nil
	}
	resp.Body = &answer{x: x, from: resp.Body, reusable: reusable}
	return resp, nil
}

// send writes the whole request. A failure need not be the end: the member may have
// answered before it had read everything.
func (x *exchange) send(req *http.Request) error {
	out := *req
	if out.Host == "" && (out.URL == nil || out.URL.Host == "") {
		out.Host = x.d.m.key.id
	}
	if err := out.Write(x.d.w); err != nil {
		return err
	}
	return x.d.w.Flush()
}

// head reads the answer's head, past interim ones.
func (x *exchange) head(req *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(x.d.r, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 {
			return resp, framed(resp)
		}
	}
}

// framed refuses an answer whose end can't be told from a broken connection.
func framed(resp *http.Response) error {
	if resp.Body != http.NoBody && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 {
		return errors.New("the answer has neither a length nor chunks")
	}
	return nil
}

// explain makes the error that the caller sees: the end of its own context, or what
// happened to the connection and why.
func (x *exchange) explain(what, why error) error {
	id := x.d.m.key.id
	if x.ctx.Err() != nil {
		return fmt.Errorf("request to member %s: %w", id, context.Cause(x.ctx))
	}
	step := errs.StepTunnel
	if what == ErrBroken {
		step = errs.StepStream
	}
	return errs.New(errs.Unavailable, "member %s: %w (%v)", id, what, why).WithStep(step)
}

// answer is the body of an answer.
type answer struct {
	x        *exchange
	from     io.Reader
	reusable bool
	ended    error // what Read gives from now on
	closed   atomic.Bool
}

// Read implements io.Reader. It gives io.EOF only when the whole body, trailers
// included, has come.
func (a *answer) Read(p []byte) (int, error) {
	if a.ended != nil {
		return 0, a.ended
	}
	if a.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := a.from.Read(p)
	if err == nil {
		return n, nil
	}
	if err == io.EOF {
		a.ended = err
		a.x.finish(a.reusable && a.x.d.r.Buffered() == 0)
		return n, err
	}
	a.ended = a.x.explain(ErrBroken, err)
	a.x.finish(false)
	return n, a.ended
}

// Arrived reports whether all that is left of the answer seems to be here already, so
// that reading on will not wait. It may be wrong, once in a very long while, for an answer whose
// data look like its end.
func (a *answer) Arrived() bool {
	if a.ended != nil {
		return true // the connection may be another request's already
	}
	r := a.x.d.r
	here, _ := r.Peek(r.Buffered())
	return bytes.HasSuffix(here, []byte("\r\n\r\n"))
}

// Close implements io.Closer. Before the end of the body it resets the connection, which
// ends the request in the member. It may be called while Read is waiting.
func (a *answer) Close() error {
	a.closed.Store(true)
	a.x.finish(false)
	return nil
}
