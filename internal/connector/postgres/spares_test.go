package postgres

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// wireColumn is a column and how a number looks in it on the wire.
type wireColumn struct {
	col  column
	wire func(n uint64) []byte
}

func wireInt8(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// wireList is the list {n, null, n+1}.
func wireList(n uint64) []byte {
	v := binary.BigEndian.AppendUint32(nil, 1)
	for _, x := range []uint32{1, 20, 3, 1, 8} {
		v = binary.BigEndian.AppendUint32(v, x)
	}
	v = append(v, wireInt8(n)...)
	v = append(v, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 8)
	return append(v, wireInt8(n+1)...)
}

func wireColumns() map[string]wireColumn {
	p := planner{types: func(uint32) (typeInfo, bool) { return typeInfo{}, false }}
	of := func(oid uint32, mod int32) column { return p.column("x", oid, mod, "").col() }
	return map[string]wireColumn{
		"int8":    {of(20, -1), wireInt8},
		"bool":    {of(oidBool, -1), func(n uint64) []byte { return []byte{byte(n & 1)} }},
		"text":    {of(oidText, -1), func(n uint64) []byte { return []byte(strings.Repeat("x", int(n%7)) + fmt.Sprint(n)) }},
		"numeric": {of(oidNumeric, 4+20<<16), func(n uint64) []byte { return wireNumeric(0, uint16(1+n%9999)) }},
		"int8[]":  {of(1016, -1), wireList},
	}
}

// batch appends rows of which every third is null if nulls is set, and finishes.
func (w wireColumn) batch(t *testing.T, rows int, seed uint64, nulls bool) arrow.Array {
	t.Helper()
	for i := range rows {
		v := w.wire(seed*1_000_003 + uint64(i))
		if nulls && i%3 == 1 {
			v = nil
		}
		if err := w.col.append(v); err != nil {
			t.Fatal(err)
		}
	}
	return w.col.finish()
}

func printed(a arrow.Array) string {
	var b strings.Builder
	for i := range a.Len() {
		b.WriteString(a.ValueStr(i) + "\n")
	}
	return b.String()
}

// A batch keeps its values for as long as anybody holds it, whoever releases the
// others, and in whatever order.
func TestHeldBatchesKeepTheirValues(t *testing.T) {
	t.Parallel()
	for name, w := range wireColumns() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fresh := wireColumns()
			type held struct {
				arrow.Array
				want string
			}
			var holding []held
			var releases sync.WaitGroup
			defer releases.Wait()
			random := rand.New(rand.NewPCG(1, 2))
			for seed := range uint64(60) {
				rows, nulls := 1+random.IntN(1000), random.IntN(2) == 0
				alone := wireColumn{fresh[name].col, w.wire}
				fresh = wireColumns() // whose columns lend nothing a second time
				a := w.batch(t, rows, seed, nulls)
				holding = append(holding, held{a, printed(alone.batch(t, rows, seed, nulls))})
				for len(holding) > random.IntN(6) {
					i := random.IntN(len(holding))
					h := holding[i]
					holding = append(holding[:i], holding[i+1:]...)
					if printed(h.Array) != h.want {
						t.Fatalf("after batch %d an earlier one has other values", seed)
					}
					releases.Go(h.Release)
				}
			}
			for _, h := range holding {
				h.Release()
			}
		})
	}
}

// addresses are where the values of an array are, bitmaps and elements included.
func addresses(data arrow.ArrayData) (at []*byte) {
	for _, b := range data.Buffers() {
		if b != nil && b.Len() > 0 {
			at = append(at, &b.Bytes()[0])
		}
	}
	for _, c := range data.Children() {
		at = append(at, addresses(c)...)
	}
	return at
}

func TestReleasedMemoryIsUsedAgain(t *testing.T) {
	t.Parallel()
	for name, w := range wireColumns() {
		first := w.batch(t, 1000, 1, true)
		before := addresses(first.Data())
		slice := array.NewSlice(first, 10, 20)
		first.Release()
		second := w.batch(t, 1000, 1, true)
		for i, at := range addresses(second.Data()) {
			if at == before[i] {
				t.Errorf("%s: buffer %d is used again while a slice holds it", name, i)
			}
		}
		slice.Release()
		third := w.batch(t, 900, 1, true)
		for i, at := range addresses(third.Data()) {
			if at != before[i] {
				t.Errorf("%s: buffer %d was made anew", name, i)
			}
		}
		second.Release()
		third.Release()
	}
}

// What one large value needed is not kept until the query's end, and no more slices are
// than a stream has batches at once.
func TestSparesAreBounded(t *testing.T) {
	t.Parallel()
	var s spares[byte]
	s.lend(make([]byte, 1<<20), sameBytes).Release()
	if len(s.free) != 1 {
		t.Fatal("not taken back")
	}
	small := s.lend(make([]byte, 10), sameBytes)
	if got := s.take(); cap(got) > 10_000 {
		t.Errorf("room for %d bytes is kept for batches of 10", cap(got))
	}
	large := s.lend(make([]byte, 0, 1<<20), sameBytes)
	if large.Release(); len(s.free) != 0 {
		t.Error("a slice far too large was taken back")
	}
	small.Release()
	var lent []*memory.Buffer
	for range 10 {
		lent = append(lent, s.lend(make([]byte, 10), sameBytes))
	}
	for _, b := range lent {
		b.Release()
	}
	if len(s.free) != maxSpares {
		t.Errorf("%d slices are kept, want %d", len(s.free), maxSpares)
	}
}

// A consumer that is some batches behind reads what the server sent.
func TestBatchesReadLate(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	const rows = 300_000
	r, _, err := newStatement(t, db, fmt.Sprintf("select i, case when i %% 5 > 0 then 'text ' || i end from generate_series(0, %d) i", rows-1)).ExecuteQuery(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	row := 0
	check := func(rec arrow.RecordBatch) {
		numbers, texts := rec.Column(0).(*array.Int32), rec.Column(1).(*array.String)
		for i := range int(rec.NumRows()) {
			if int(numbers.Value(i)) != row || texts.IsNull(i) != (row%5 == 0) || texts.IsValid(i) && texts.Value(i) != fmt.Sprint("text ", row) {
				t.Fatalf("row %d is %d, %s", row, numbers.Value(i), texts.ValueStr(i))
			}
			row++
		}
		rec.Release()
	}
	var behind []arrow.RecordBatch
	for r.Next() {
		r.RecordBatch().Retain()
		if behind = append(behind, r.RecordBatch()); len(behind) > 4 {
			check(behind[0])
			behind = behind[1:]
		}
	}
	for _, rec := range behind {
		check(rec)
	}
	if r.Err() != nil || row != rows {
		t.Errorf("%d rows, %v", row, r.Err())
	}
}

// More batches don't mean more garbage: some small objects each, never their values.
// Not parallel, since it counts what the whole process allocates.
func TestBatchesMakeLittleGarbage(t *testing.T) {
	db := openSource(t, testpg.Shared(t))
	r, _, err := newStatement(t, db, "select i, i::float8, i::text, repeat('x', 100) from generate_series(1, 600000) i").ExecuteQuery(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	var start, end runtime.MemStats
	batches := 0
	for r.Next() {
		if batches++; batches == 10 { // by now every column has its room
			runtime.ReadMemStats(&start)
		}
	}
	runtime.ReadMemStats(&end)
	if r.Err() != nil || batches < 30 {
		t.Fatal(batches, r.Err())
	}
	each := (end.TotalAlloc - start.TotalAlloc) / uint64(batches-10)
	t.Logf("%d bytes allocated for each of %d batches", each, batches)
	if each > 100<<10 {
		t.Errorf("%d bytes are allocated for each batch", each)
	}
}
