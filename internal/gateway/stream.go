package gateway

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

const (
	// held is how long written bytes may wait for more to leave together with: a short
	// result leaves in one piece, and the schema of a slow one leaves at once.
	held = time.Millisecond
	// holdSize is the buffer in which small writes gather, directSize the size from
	// which bytes are handed on without copying.
	holdSize   = 64 << 10
	directSize = 16 << 10
	// grace is how long a client has to take what remains once a request was ended.
	grace = 5 * time.Second
)

// stream is an Arrow answer on its way. Nothing is sent before the first flush, so
// that an error until then still gets its own status. Writes block while the client
// does not read: that is the back-pressure. One goroutine calls its methods.
type stream struct {
	w    http.ResponseWriter
	ctl  *http.ResponseController
	ipc  *ipc.Writer
	rows int64

	mu     sync.Mutex // the timer flushes as well
	timer  *time.Timer
	idle   bool // between batches: the timer may flush
	buf    []byte
	sent   bool // the header and something of the body have left
	err    error
	unbind func() bool
}

// newStream makes a stream whose writes end soon after ctx does.
func newStream(ctx context.Context, w http.ResponseWriter) *stream {
	st := &stream{w: w, ctl: http.NewResponseController(w)}
	st.unbind = context.AfterFunc(ctx, func() { _ = st.ctl.SetWriteDeadline(time.Now().Add(grace)) })
	st.timer = time.AfterFunc(time.Hour, st.flushIdle)
	st.timer.Stop()
	return st
}

// close ends what the stream runs beside the handler.
func (st *stream) close() {
	st.unbind()
	st.hold()
}

// begin writes the schema.
func (st *stream) begin(schema *arrow.Schema) error {
	message, _ := arrowipc.EncodeSchema(schema)
	st.ipc = ipc.NewWriterWithPayloadWriter(&payloads{to: st}, ipc.WithSchema(schema))
	_, err := st.Write(message)
	st.release()
	return err
}

// batch writes one batch, with the dictionaries that it needs.
func (st *stream) batch(rec arrow.RecordBatch) error {
	st.hold()
	defer st.release()
	if err := st.ipc.Write(rec); err != nil {
		if st.err != nil {
			return st.err
		}
		return errs.New(errs.Internal, "a batch can't be written as Arrow IPC: %w", err).WithStep(errs.StepStream)
	}
	st.rows += rec.NumRows()
	return nil
}

// end writes the end-of-stream marker: the result is whole.
func (st *stream) end() error {
	st.hold()
	if err := arrowipc.WriteEOS(st); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.flush()
	return st.err
}

// trailers writes what follows a body that was begun. err is nil for a whole result.
func (st *stream) trailers(stats memberapi.Stats, err *errs.Error) {
	h := st.w.Header()
	h.Set(memberapi.TrailerStats, asciiJSON(stats))
	if err == nil {
		h.Set(memberapi.TrailerStatus, memberapi.StatusOK)
		return
	}
	h.Set(memberapi.TrailerStatus, "error")
	h.Set(memberapi.TrailerError, errorTrailer(err))
}

// fail ends the answer with an error: by its own status if nothing has left yet, else
// in the trailers. If the connection does not take writes any more it is cut.
func (st *stream) fail(stats memberapi.Stats, err *errs.Error) {
	st.hold()
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.err != nil:
		panic(http.ErrAbortHandler)
	case !st.sent:
		writeError(st.w, err)
	default:
		st.trailers(stats, err)
	}
}

// hold keeps the timer from flushing; release lets it.
func (st *stream) hold() {
	st.timer.Stop()
	st.mu.Lock()
	defer st.mu.Unlock()
	st.idle = false
}

func (st *stream) release() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.idle = true
	st.timer.Reset(held)
}

func (st *stream) flushIdle() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.idle {
		return
	}
	st.idle = false
	if st.flush(); st.err == nil {
		st.err = st.ctl.Flush()
	}
}

// Write gathers small writes and hands large ones on as they are.
func (st *stream) Write(p []byte) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.buf)+len(p) > holdSize || len(p) >= directSize {
		st.flush()
	}
	if st.err != nil {
		return 0, st.err
	}
	if len(p) < directSize {
		st.buf = append(st.buf, p...)
		return len(p), nil
	}
	st.send(p)
	return len(p), st.err
}

// flush hands the buffer on. mu is held.
func (st *stream) flush() {
	if len(st.buf) > 0 {
		st.send(st.buf)
		st.buf = st.buf[:0]
	}
}

// send writes to the connection, after the header if need be. mu is held.
func (st *stream) send(p []byte) {
	if st.err != nil {
		return
	}
	if !st.sent {
		st.sent = true
		h := st.w.Header()
		h.Set("Content-Type", "application/vnd.apache.arrow.stream")
		h.Set("Trailer", memberapi.TrailerStatus+", "+memberapi.TrailerError+", "+memberapi.TrailerStats)
		st.w.WriteHeader(http.StatusOK)
	}
	_, st.err = st.w.Write(p)
}

// payloads puts the messages of an ipc.Writer into a stream. The schema is left out,
// since the stream has sent it already, and so is the end-of-stream marker, which
// ipc.Writer would write even after a failure.
type payloads struct {
	to     *stream
	schema bool
}

func (p *payloads) Start() error { return nil }
func (p *payloads) Close() error { return nil }

func (p *payloads) WritePayload(payload ipc.Payload) error {
	if !p.schema {
		p.schema = true
		return nil
	}
	_, err := payload.WritePayload(p.to)
	return err
}
