package postgres

import (
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// maxChunkRows bounds the parameter rows sent ahead of their results.
const maxChunkRows = 64

// boundRow is one row of parameters as Bind takes them.
type boundRow struct {
	values  [][]byte
	formats []int16
}

// binder gives the bound parameter rows out in chunks. Until forget, it can start over.
type binder struct {
	recs   []arrow.RecordBatch // retained; those before batch are done with
	stream array.RecordReader  // retained; nil for none
	batch  int
	row    int
	keep   bool // the rows before may be asked for again
	bound  bool // there are parameters at all
}

func (b *binder) setRecord(rec arrow.RecordBatch) {
	b.close()
	if rec != nil {
		rec.Retain()
		*b = binder{recs: []arrow.RecordBatch{rec}, bound: true}
	}
}

func (b *binder) setStream(rr array.RecordReader) {
	b.close()
	if rr != nil {
		rr.Retain()
		*b = binder{stream: rr, bound: true}
	}
}

func (b *binder) close() {
	for _, r := range b.recs {
		r.Release()
	}
	if b.stream != nil {
		b.stream.Release()
	}
	*b = binder{}
}

// share returns a binder of the same rows for one execution, which closes it.
func (b *binder) share() *binder {
	for _, r := range b.recs {
		r.Retain()
	}
	if b.stream != nil {
		b.stream.Retain()
	}
	return &binder{recs: append([]arrow.RecordBatch(nil), b.recs...), stream: b.stream, keep: true, bound: b.bound}
}

// rewind starts over. A stream that was partly given out and forgotten goes on.
func (b *binder) rewind() { b.batch, b.row = 0, 0 }

// forget frees what a stream has given out already.
func (b *binder) forget() {
	if b.stream == nil {
		return
	}
	b.keep = false
	b.dropDone()
}

func (b *binder) dropDone() {
	for _, r := range b.recs[:b.batch] {
		r.Release()
	}
	b.recs, b.batch = append(b.recs[:0], b.recs[b.batch:]...), 0
}

// chunk returns the next rows; last says that there are no more. Without parameters
// that is one empty row.
func (b *binder) chunk(oids []uint32) (rows []boundRow, last bool, err error) {
	if !b.bound {
		if len(oids) > 0 {
			return nil, true, errs.New(errs.Invalid, "the statement takes %d parameters, and none are bound", len(oids)).WithStep(errs.StepExecute)
		}
		return []boundRow{{}}, true, nil
	}
	for len(rows) < maxChunkRows {
		rec, err := b.current()
		if err != nil || rec == nil {
			return rows, true, err
		}
		row, err := encodeRow(rec, b.row, oids)
		if err != nil {
			return nil, true, err
		}
		rows = append(rows, row)
		b.row++
	}
	rec, err := b.current()
	return rows, rec == nil, err
}

// current returns the batch that holds the next row, nil at the end.
func (b *binder) current() (arrow.RecordBatch, error) {
	for {
		if b.batch < len(b.recs) {
			if int64(b.row) < b.recs[b.batch].NumRows() {
				return b.recs[b.batch], nil
			}
			b.batch, b.row = b.batch+1, 0
			continue
		}
		if b.stream != nil && !b.keep {
			b.dropDone()
		}
		if b.stream == nil || !b.stream.Next() {
			return nil, b.streamError()
		}
		rec := b.stream.RecordBatch()
		rec.Retain()
		b.recs = append(b.recs, rec)
	}
}

func (b *binder) streamError() error {
	if b.stream == nil || b.stream.Err() == nil {
		return nil
	}
	return errs.New(errs.Invalid, "read the bound parameters: %w", b.stream.Err()).WithStep(errs.StepExecute)
}

func encodeRow(rec arrow.RecordBatch, row int, oids []uint32) (boundRow, error) {
	if int(rec.NumCols()) != len(oids) {
		return boundRow{}, errs.New(errs.Invalid, "the statement takes %d parameters, and %d are bound", len(oids), rec.NumCols()).WithStep(errs.StepExecute)
	}
	r := boundRow{values: make([][]byte, len(oids)), formats: make([]int16, len(oids))}
	for i, oid := range oids {
		v, format, err := encodeParam(rec.Column(i), row, oid)
		if err != nil {
			return boundRow{}, errs.New(errs.Invalid, "parameter $%d: %w", i+1, err).WithStep(errs.StepExecute)
		}
		r.values[i], r.formats[i] = v, format
	}
	return r, nil
}
