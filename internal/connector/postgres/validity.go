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
	bits     []byte
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
		v.bits = make([]byte, (v.n+8)/8, max(64, (v.n+8)/8))
		for i := range v.n {
			v.bits[i>>3] |= 1 << (i & 7)
		}
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
		buf = memory.NewBufferBytes(v.bits)
	}
	n, nulls = v.n, v.nulls
	*v = validity{}
	return buf, n, nulls
}

// newArray makes an array of buffers that the garbage collector owns.
func newArray(dt arrow.DataType, n, nulls int, bufs []*memory.Buffer, children ...arrow.Array) arrow.Array {
	var kids []arrow.ArrayData
	for _, c := range children {
		kids = append(kids, c.Data())
	}
	data := array.NewData(dt, n, bufs, kids, nulls, 0)
	defer data.Release()
	return array.MakeFromData(data)
}
