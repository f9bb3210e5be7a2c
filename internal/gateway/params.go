package gateway

import (
	"bytes"
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// readParams decodes the parameter rows of a request into one batch; nil for none.
// Rows of no column are none.
func readParams(stream []byte) (arrow.RecordBatch, error) {
	if len(stream) == 0 {
		return nil, nil
	}
	if err := checkParams(stream); err != nil {
		return nil, badParams(err)
	}
	batches, schema, err := decodeParams(stream)
	defer releaseAll(batches)
	if err != nil {
		return nil, badParams(err)
	}
	if schema.NumFields() == 0 {
		return nil, nil
	}
	rec, err := joinBatches(schema, batches)
	if err != nil {
		return nil, badParams(err)
	}
	if rec.NumRows() == 0 {
		rec.Release()
		return nil, badParams(fmt.Errorf("they have columns, but no row"))
	}
	return rec, nil
}

func badParams(err error) error {
	return errs.New(errs.Invalid, "the query's parameters are unusable: %w", err).WithStep(errs.StepExecute)
}

// checkParams makes sure that the stream is whole and that its schema is safe to
// decode: arrow-go's reader takes a stream that stops between batches for complete.
func checkParams(stream []byte) error {
	r := arrowipc.NewReader(bytes.NewReader(stream), arrowipc.Options{MaxBody: int64(len(stream))})
	for {
		f, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if f.Kind == arrowipc.Schema {
			if _, err := arrowipc.SchemaOf(f); err != nil {
				return err
			}
		}
	}
}

// decodeParams returns the batches of a stream. The caller releases them, error or not.
func decodeParams(stream []byte) (batches []arrow.RecordBatch, schema *arrow.Schema, err error) {
	// Malformed buffers may make arrow-go panic.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed: %s", describePanic(p))
		}
	}()
	r, err := ipc.NewReader(bytes.NewReader(stream))
	if err != nil {
		return nil, nil, err
	}
	defer r.Release()
	for r.Next() {
		rec := r.RecordBatch()
		rec.Retain()
		batches = append(batches, rec)
	}
	return batches, r.Schema(), r.Err()
}

// joinBatches makes one batch of many.
func joinBatches(schema *arrow.Schema, batches []arrow.RecordBatch) (arrow.RecordBatch, error) {
	if len(batches) == 1 {
		batches[0].Retain()
		return batches[0], nil
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	if len(batches) == 0 {
		return b.NewRecordBatch(), nil
	}
	columns := make([]arrow.Array, schema.NumFields())
	defer func() {
		for _, c := range columns {
			if c != nil {
				c.Release()
			}
		}
	}()
	var rows int64
	for _, rec := range batches {
		rows += rec.NumRows()
	}
	for i := range columns {
		parts := make([]arrow.Array, len(batches))
		for j, rec := range batches {
			parts[j] = rec.Column(i)
		}
		var err error
		if columns[i], err = array.Concatenate(parts, memory.DefaultAllocator); err != nil {
			return nil, err
		}
	}
	return array.NewRecordBatch(schema, columns, rows), nil
}

func releaseAll(batches []arrow.RecordBatch) {
	for _, b := range batches {
		b.Release()
	}
}
