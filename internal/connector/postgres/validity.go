package postgres

import (
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// minCapacity is the number of rows that a column has room for at first: small, so
// that a query of one row costs little. Later batches start with their predecessor's size.
const minCapacity = 32

// validity counts a column's rows and keeps its validity bitmap, which exists only
// once there is a null.
type validity struct {
	n, nulls int
	bits     []byte // nil before a batch's first null
	spare    spares[byte]
}

func (v *validity) addValid() {
	if v.bits != nil {
		v.room()
		v.bits[v.n>>3] |= 1 << (v.n & 7)
	}
	v.n++
}

func (v *validity) addNull() {
	if v.bits == nil {
		v.bits = v.spare.take()
		for range v.n >> 3 {
			v.bits = append(v.bits, 0xff)
		}
		v.bits = append(v.bits, 1<<(v.n&7)-1)
	}
	v.room()
	v.nulls++
	v.n++
}

func (v *validity) room() {
	if v.n>>3 >= len(v.bits) {
		v.bits = append(v.bits, 0)
	}
}

// take returns the bitmap (nil without nulls) with the counts, and starts anew.
func (v *validity) take() (buf *memory.Buffer, n, nulls int) {
	if v.nulls > 0 {
		buf = v.spare.lend(v.bits, sameBytes)
	}
	n, nulls = v.n, v.nulls
	v.n, v.nulls, v.bits = 0, 0, nil
	return buf, n, nulls
}

// newArray makes an array that owns the buffers.
func newArray(dt arrow.DataType, n, nulls int, bufs []*memory.Buffer, children ...arrow.Array) arrow.Array {
	var kids []arrow.ArrayData
	for _, c := range children {
		kids = append(kids, c.Data())
	}
	data := array.NewData(dt, n, bufs, kids, nulls, 0)
	defer data.Release()
	for _, b := range bufs {
		if b != nil {
			b.Release()
		}
	}
	return array.MakeFromData(data)
}
