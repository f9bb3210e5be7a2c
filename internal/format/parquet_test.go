package format

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
)

// readParquet reads a file back.
func readParquet(t *testing.T, doc []byte) arrow.Table {
	t.Helper()
	pf, err := file.NewParquetReader(bytes.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pf.Close() })
	fr, err := pqarrow.NewFileReader(pf, pqarrow.ArrowReadProperties{}, memory.DefaultAllocator)
	if err != nil {
		t.Fatal(err)
	}
	table, err := fr.ReadTable(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// TestParquetEveryType writes each type into a file of its own and reads it back: the
// text of its value must be the same.
func TestParquetEveryType(t *testing.T) {
	for _, v := range values() {
		t.Run(v.name, func(t *testing.T) {
			b := array.NewBuilder(memory.DefaultAllocator, v.typ)
			v.fill(b)
			b.AppendNull()
			schema := arrow.NewSchema([]arrow.Field{{Name: v.name, Type: v.typ, Nullable: true}}, nil)
			batch := array.NewRecordBatch(schema, []arrow.Array{b.NewArray()}, 2)
			var out bytes.Buffer
			rows, err := Parquet(&out, bytes.NewReader(streamOf(t, schema, batch)))
			if v.name == "ts s max" { // Parquet counts milliseconds: not in its range
				if err == nil {
					t.Error("a timestamp beyond Parquet's range gave no error")
				}
				return
			}
			if err != nil || rows != 2 {
				t.Fatalf("%d rows, %v", rows, err)
			}
			got := readParquet(t, out.Bytes()).Column(0)
			c := newColumn(got.Data().Chunk(0))
			if text := string(c.text(nil, 0)); text != v.text {
				t.Errorf("%q as %s, want %q", text, got.DataType(), v.text)
			}
			if !c.null(1) && v.name != "union" {
				t.Errorf("NULL became %q", c.text(nil, 1))
			}
			if native := inParquet(v.typ); !native && got.DataType().ID() != arrow.STRING {
				t.Errorf("a %s became a %s", v.typ, got.DataType())
			}
		})
	}
}

// endless gives the same batches again and again: a long stream that takes no memory.
type endless struct {
	batch, end []byte
	left       int
	pending    []byte
	peak       uint64
}

func newEndless(t testing.TB, rows, batches int) *endless {
	none, one := numbers(t, 0, 0), numbers(t, 1, rows)
	return &endless{
		pending: none[:len(none)-8], batch: one[len(none)-8 : len(one)-8],
		end: one[len(one)-8:], left: batches,
	}
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.pending) == 0 {
		switch {
		case e.left > 0:
			e.pending = e.batch
			if e.left%20 == 0 {
				e.heap()
			}
		case e.left == 0:
			e.pending = e.end
		default:
			return 0, io.EOF
		}
		e.left--
	}
	n := copy(p, e.pending)
	e.pending = e.pending[n:]
	return n, nil
}

// heap measures the live heap and keeps the largest value.
func (e *endless) heap() {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	e.peak = max(e.peak, m.HeapAlloc)
}

// TestMemoryDoesNotGrow: promise 6 on this side.
func TestMemoryDoesNotGrow(t *testing.T) {
	for _, f := range All() {
		t.Run(f.Name, func(t *testing.T) {
			peaks := map[int]uint64{}
			for _, batches := range []int{40, 400} {
				in := newEndless(t, 2000, batches)
				rows, err := f.Encode(io.Discard, in)
				if err != nil || rows != int64(batches)*2000 {
					t.Fatalf("%d rows, %v", rows, err)
				}
				peaks[batches] = in.peak
				t.Logf("%d rows: peak heap %d MiB", rows, in.peak>>20)
			}
			if limit := peaks[40]*6/5 + groupBytes; peaks[400] > limit {
				t.Errorf("peak heap %d MiB for ten times the rows, limit %d", peaks[400]>>20, limit>>20)
			}
		})
	}
}

func TestParquetRowGroups(t *testing.T) {
	var out bytes.Buffer
	rows, err := Parquet(&out, newEndless(t, 10000, 250))
	if err != nil || rows != 2_500_000 {
		t.Fatalf("%d rows, %v", rows, err)
	}
	pf, err := file.NewParquetReader(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	defer pf.Close()
	if pf.NumRowGroups() < 3 || pf.NumRows() != 2_500_000 {
		t.Errorf("%d row groups, %d rows", pf.NumRowGroups(), pf.NumRows())
	}
	for i := range pf.NumRowGroups() {
		if n := pf.RowGroup(i).NumRows(); n > groupRows || n == 0 {
			t.Errorf("row group %d has %d rows", i, n)
		}
	}
}

// TestParquetRowGroupsOfWideRows: rows that don't shrink are bounded by their bytes.
func TestParquetRowGroupsOfWideRows(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{{Name: "b", Type: arrow.BinaryTypes.Binary}}, nil)
	random := rand.NewChaCha8([32]byte{1})
	var batches []arrow.RecordBatch
	for range 48 {
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		for range 1000 {
			value := make([]byte, 1024)
			_, _ = random.Read(value) // never fails
			b.Field(0).(*array.BinaryBuilder).Append(value)
		}
		batches = append(batches, b.NewRecordBatch())
	}
	var out bytes.Buffer
	if _, err := Parquet(&out, bytes.NewReader(streamOf(t, schema, batches...))); err != nil {
		t.Fatal(err)
	}
	pf, err := file.NewParquetReader(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	defer pf.Close()
	for i := range pf.NumRowGroups() {
		if size := pf.RowGroup(i).MetaData().TotalByteSize(); size > groupBytes+2<<20 {
			t.Errorf("row group %d has %d bytes", i, size)
		}
	}
	if pf.NumRowGroups() < 3 {
		t.Errorf("%d row groups for 48 MB", pf.NumRowGroups())
	}
}

// TestParquetFailureInsideTheLibrary: a batch that the library refuses must not leave
// a file with a footer.
func TestParquetFailureInsideTheLibrary(t *testing.T) {
	var out bytes.Buffer
	schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
	pw, err := newParquetWriter(&out, schema)
	if err != nil {
		t.Fatal(err)
	}
	good := array.NewInt64Builder(memory.DefaultAllocator)
	good.AppendValues([]int64{1, 2, 3}, nil)
	if err := pw.write(array.NewRecordBatch(schema, []arrow.Array{good.NewArray()}, 3)); err != nil {
		t.Fatal(err)
	}
	good.AppendNull() // the column is not nullable
	err = func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%v", p)
			}
		}()
		other := arrow.NewSchema([]arrow.Field{{Name: "m", Type: arrow.PrimitiveTypes.Int64}}, nil)
		return pw.add(array.NewRecordBatch(other, []arrow.Array{good.NewArray()}, 1))
	}()
	if err == nil {
		t.Fatal("a batch of another schema was taken")
	}
	if err := pw.finish(); err == nil || looksWhole("parquet", out.Bytes()) {
		t.Errorf("finish after a failure: %v, %d bytes", err, out.Len())
	}
}
