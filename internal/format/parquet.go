package format

import (
	"errors"
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
)

// The bounds of a row group, which stands in memory until it is written.
const (
	groupBytes = 16 << 20
	groupRows  = 1 << 20
)

// Parquet writes a Parquet file, compressed with Snappy, to a plain writer. UUIDs and
// JSON documents keep their logical types. Types that Parquet lacks (intervals,
// durations, unions, views, 32- and 64-bit decimals and whatever contains one of
// them) become text in the form of CSV.
func Parquet(w io.Writer, r io.Reader) (rows int64, err error) {
	// The Parquet library panics where it meets what it did not expect.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("write Parquet: %v", p)
		}
	}()
	src, err := open(r)
	if err != nil {
		return 0, err
	}
	defer src.close()
	pw, err := newParquetWriter(w, src.schema())
	if err != nil {
		return 0, err
	}
	err = src.each(func(batch arrow.RecordBatch) error {
		rows += batch.NumRows()
		return pw.write(batch)
	})
	if err != nil {
		return rows, err
	}
	return rows, pw.finish()
}

// gate passes bytes on while it is open. The Parquet library closes a file, and so
// writes the footer that makes it look whole, when a write fails.
type gate struct {
	w    io.Writer
	open bool
}

var errGate = errors.New("the file is not complete")

// Write implements io.Writer.
func (g *gate) Write(p []byte) (int, error) {
	if !g.open {
		return 0, errGate
	}
	return g.w.Write(p)
}

// parquetWriter writes batches in row groups that it closes itself.
type parquetWriter struct {
	gate   *gate
	file   *pqarrow.FileWriter
	schema *arrow.Schema
	group  int64 // rows in the present row group
}

func newParquetWriter(w io.Writer, schema *arrow.Schema) (*parquetWriter, error) {
	fields := make([]arrow.Field, schema.NumFields())
	for i, f := range schema.Fields() {
		fields[i] = f
		fields[i].Type = parquetType(f.Type)
	}
	pw := &parquetWriter{gate: &gate{w: w, open: true}, schema: arrow.NewSchema(fields, nil)}
	var err error
	pw.file, err = pqarrow.NewFileWriter(pw.schema, pw.gate,
		parquet.NewWriterProperties(
			parquet.WithCompression(compress.Codecs.Snappy),
			parquet.WithMaxRowGroupLength(1<<62),
			parquet.WithCreatedBy("sluice")),
		pqarrow.NewArrowWriterProperties(pqarrow.WithStoreSchema()))
	if err != nil {
		return nil, fmt.Errorf("write Parquet: %w", err)
	}
	return pw, nil
}

// write adds a batch to the row group, and starts another one past the bounds.
func (p *parquetWriter) write(batch arrow.RecordBatch) error {
	if batch.NumRows() == 0 {
		return nil
	}
	if p.group > 0 && (p.group+batch.NumRows() > groupRows || p.file.RowGroupTotalBytesWritten() >= groupBytes) {
		if err := p.file.NewBufferedRowGroupChecked(); err != nil {
			return fmt.Errorf("write Parquet: %w", err)
		}
		p.group = 0
		if err := flush(p.gate.w); err != nil {
			return err
		}
	}
	converted := p.convert(batch)
	defer converted.Release()
	p.group += batch.NumRows()
	return p.add(converted)
}

// add buffers a batch. Nothing may reach the output meanwhile: only a failure would write.
func (p *parquetWriter) add(batch arrow.RecordBatch) error {
	p.gate.open = false
	if err := p.file.WriteBuffered(batch); err != nil {
		return fmt.Errorf("write Parquet: %w", err)
	}
	p.gate.open = true
	return nil
}

func (p *parquetWriter) finish() error {
	if err := p.file.Close(); err != nil {
		return fmt.Errorf("write Parquet: %w", err)
	}
	return flush(p.gate.w)
}

// convert gives the batch the file's schema.
func (p *parquetWriter) convert(batch arrow.RecordBatch) arrow.RecordBatch {
	columns := make([]arrow.Array, batch.NumCols())
	for i, f := range p.schema.Fields() {
		columns[i] = convertArray(batch.Column(i), f.Type)
	}
	out := array.NewRecordBatch(p.schema, columns, batch.NumRows())
	for _, c := range columns {
		c.Release()
	}
	return out
}

// convertArray returns arr, its storage, or its values as text; the caller releases it.
func convertArray(arr arrow.Array, want arrow.DataType) arrow.Array {
	if arrow.TypeEqual(arr.DataType(), want) {
		arr.Retain()
		return arr
	}
	if ext, ok := arr.(array.ExtensionArray); ok {
		return convertArray(ext.Storage(), want)
	}
	b := array.NewStringBuilder(memory.DefaultAllocator)
	defer b.Release()
	c := newColumn(arr)
	var buf []byte
	for row := range arr.Len() {
		if c.null(row) {
			b.AppendNull()
			continue
		}
		buf = c.text(buf[:0], row)
		b.BinaryBuilder.Append(buf)
	}
	return b.NewArray()
}

// parquetType is the type of the column in a Parquet file that takes the values of t.
func parquetType(t arrow.DataType) arrow.DataType {
	if inParquet(t) {
		return t
	}
	if ext, ok := t.(arrow.ExtensionType); ok {
		return parquetType(ext.StorageType())
	}
	return arrow.BinaryTypes.String
}

// inParquet says whether Parquet can hold a type as it is.
func inParquet(t arrow.DataType) bool {
	switch t := t.(type) {
	case arrow.DecimalType:
		wide := t.ID() == arrow.DECIMAL128 || t.ID() == arrow.DECIMAL256
		return wide && t.GetScale() >= 0 && t.GetScale() <= t.GetPrecision()
	case arrow.ExtensionType:
		return t.ExtensionName() == "arrow.uuid" || t.ExtensionName() == "arrow.json"
	case *arrow.ListType, *arrow.LargeListType, *arrow.FixedSizeListType, *arrow.MapType, *arrow.StructType:
		for _, f := range t.(arrow.NestedType).Fields() {
			if !inParquet(f.Type) {
				return false
			}
		}
		return t.(arrow.NestedType).NumFields() > 0
	}
	switch t.ID() {
	case arrow.NULL, arrow.BOOL, arrow.INT8, arrow.INT16, arrow.INT32, arrow.INT64,
		arrow.UINT8, arrow.UINT16, arrow.UINT32, arrow.UINT64,
		arrow.FLOAT16, arrow.FLOAT32, arrow.FLOAT64, arrow.STRING, arrow.LARGE_STRING,
		arrow.BINARY, arrow.LARGE_BINARY, arrow.FIXED_SIZE_BINARY, arrow.DATE32,
		arrow.TIME32, arrow.TIME64, arrow.TIMESTAMP:
		return true
	}
	return false
}
