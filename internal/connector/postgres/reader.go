package postgres

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// reader streams a result. A goroutine of its own makes the next batch while the
// consumer has one. It gets no further ahead: that would not be faster, and each batch
// more costs its memory, for the whole length of the query.
type reader struct {
	refs   atomic.Int64
	schema *arrow.Schema
	cancel context.CancelFunc
	first  arrow.RecordBatch      // nil once it was given out
	ahead  chan arrow.RecordBatch // nil if first is all there is, and so is done
	err    error                  // final once ahead is closed
	done   chan struct{}          // closed when the goroutine has ended
	cur    arrow.RecordBatch
	failed error // err as the consumer has met it
}

var _ array.RecordReader = (*reader)(nil)

// newReader streams what x gives after first. With end set there is nothing more, and x is over.
func newReader(x *run, cancel context.CancelFunc, first arrow.RecordBatch, end bool) *reader {
	r := &reader{schema: x.desc.schema, cancel: cancel, first: first}
	r.refs.Store(1)
	if end {
		cancel()
		return r
	}
	r.ahead, r.done = make(chan arrow.RecordBatch), make(chan struct{})
	go r.pump(x)
	return r
}

func (r *reader) pump(x *run) {
	defer close(r.done)
	defer close(r.ahead)
	defer r.cancel()
	for {
		rec, err := x.batch()
		if rec != nil {
			select {
			case r.ahead <- rec:
			case <-x.ctx.Done():
				rec.Release()
				err = x.ctx.Err()
			}
		}
		if err != nil {
			x.end(notEOF(err))
			r.err = x.userError(notEOF(err))
			return
		}
	}
}

func notEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// batch returns the next rows as a batch, nil if there are none, and io.EOF with the last.
func (x *run) batch() (arrow.RecordBatch, error) {
	n, err := x.fill()
	if n == 0 || err != nil && err != io.EOF {
		return nil, err
	}
	arrays := make([]arrow.Array, len(x.cols))
	for i, c := range x.cols {
		arrays[i] = c.finish()
	}
	rec := array.NewRecordBatch(x.desc.schema, arrays, int64(n))
	for _, a := range arrays {
		a.Release()
	}
	return rec, err
}

// userError is the error of a run as the user gets it.
func (x *run) userError(err error) error {
	step := errs.StepExecute
	if x.rows > 0 {
		step = errs.StepStream
	}
	var m *misfitError
	if errors.As(err, &m) && x.ctx.Err() == nil {
		f := x.desc.schema.Field(m.col)
		return errs.New(errs.Source, "column %q, row %d: %s does not fit %s", f.Name, x.rows+1, m.what, f.Type).
			WithHint("cast the column to text, or run the query again: the column then comes as text").
			WithStep(step).On(x.db.cfg.object, "")
	}
	return x.db.cfg.queryError(x.ctx, step, x.rows, err)
}

func (r *reader) Schema() *arrow.Schema { return r.schema }

func (r *reader) Next() bool {
	r.dropCurrent()
	if r.first != nil {
		r.cur, r.first = r.first, nil
		return true
	}
	if r.ahead == nil {
		return false
	}
	rec, ok := <-r.ahead
	if !ok {
		r.failed = r.err
		return false
	}
	r.cur = rec
	return true
}

func (r *reader) dropCurrent() {
	if r.cur != nil {
		r.cur.Release()
		r.cur = nil
	}
}

func (r *reader) RecordBatch() arrow.RecordBatch { return r.cur }

// Record implements array.RecordReader, which still has the old name.
func (r *reader) Record() arrow.RecordBatch { return r.cur }

func (r *reader) Err() error { return r.failed }

func (r *reader) Retain() { r.refs.Add(1) }

// Release with the last reference ends the query, if it still runs.
func (r *reader) Release() {
	if r.refs.Add(-1) != 0 {
		return
	}
	r.cancel()
	if r.done != nil {
		<-r.done
	}
	r.dropCurrent()
	if r.first != nil {
		r.first.Release()
		r.first = nil
	}
}
