package postgres

import (
	"fmt"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// A column collects values as they come over the wire into Arrow buffers.
type column interface {
	// append adds a value, nil for null. A *misfit says that the column's type cannot
	// hold the value; any other error that the bytes are not what the protocol promises.
	append(v []byte) error
	// appendBlock appends the values at these offsets of bytes, and returns how many
	// there are before the first that does not go in.
	appendBlock(bytes []byte, at []uint32) (int, error)
	// finish returns the values so far and starts anew.
	finish() arrow.Array
}

// misfit is a value that the column's Arrow type cannot hold.
type misfit struct{ what string }

func (m *misfit) Error() string { return m.what }

func notUTF8() error { return &misfit{"text that is not UTF-8"} }

func malformed(what string, v []byte) error {
	return fmt.Errorf("malformed %s of %d bytes", what, len(v))
}

// fixed is a column of values of one width.
type fixed[T any] struct {
	validity
	dt    arrow.DataType
	read  func([]byte) (T, error)
	block blockFunc[T] // nil: there is none
	bytes func([]T) []byte
	vals  []T // nil before a batch's first value
	spare spares[T]
}

func (c *fixed[T]) append(v []byte) error {
	if c.vals == nil {
		c.vals = c.spare.take()
	}
	var x T
	if v == nil {
		c.vals = append(c.vals, x)
		c.addNull()
		return nil
	}
	x, err := c.read(v)
	if err != nil {
		return err
	}
	c.vals = append(c.vals, x)
	c.addValid()
	return nil
}

func (c *fixed[T]) finish() arrow.Array {
	vals := c.spare.lend(c.vals, c.bytes)
	c.vals = nil
	bits, n, nulls := c.take()
	return newArray(c.dt, n, nulls, []*memory.Buffer{bits, vals})
}

// boolean is a column of bits.
type boolean struct {
	validity
	vals  []byte // nil before a batch's first value
	spare spares[byte]
}

func (c *boolean) append(v []byte) error {
	if c.vals == nil {
		c.vals = c.spare.take()
	}
	if c.n>>3 >= len(c.vals) {
		c.vals = append(c.vals, 0)
	}
	if v == nil {
		c.addNull()
		return nil
	}
	if len(v) != 1 {
		return malformed("bool", v)
	}
	if v[0] != 0 {
		c.vals[c.n>>3] |= 1 << (c.n & 7)
	}
	c.addValid()
	return nil
}

func (c *boolean) finish() arrow.Array {
	vals := c.spare.lend(c.vals, sameBytes)
	c.vals = nil
	bits, n, nulls := c.take()
	return newArray(arrow.FixedWidthTypes.Boolean, n, nulls, []*memory.Buffer{bits, vals})
}

// variable is a column of texts or byte strings, which it copies as they are. Texts are
// checked: a query can change the encoding that the server sends in.
type variable struct {
	validity
	dt     arrow.DataType
	isText bool
	ends   offsets
	data   []byte // nil before a batch's first value
	spare  spares[byte]
}

func newVariable(dt arrow.DataType) *variable {
	return &variable{dt: dt, isText: dt.ID() == arrow.STRING}
}

func (c *variable) append(v []byte) error {
	if c.data == nil {
		c.data = c.spare.take()
	}
	if v == nil {
		c.ends.add(len(c.data))
		c.addNull()
		return nil
	}
	if c.isText && !utf8.Valid(v) {
		return notUTF8()
	}
	c.data = append(c.data, v...)
	c.ends.add(len(c.data))
	c.addValid()
	return nil
}

func (c *variable) finish() arrow.Array {
	data := c.spare.lend(c.data, sameBytes)
	c.data = nil
	bits, n, nulls := c.take()
	return newArray(c.dt, n, nulls, []*memory.Buffer{bits, c.ends.finish(), data})
}

// offsets are where the values of a column of varying length end, behind a zero.
type offsets struct {
	at    []int32 // nil before a batch's first value
	spare spares[int32]
}

func (o *offsets) add(at int) {
	if o.at == nil {
		o.begin()
	}
	o.at = append(o.at, int32(at))
}

func (o *offsets) begin() { o.at = append(o.spare.take(), 0) }

func (o *offsets) finish() *memory.Buffer {
	if o.at == nil {
		o.begin()
	}
	buf := o.spare.lend(o.at, arrow.Int32Traits.CastToBytes)
	o.at = nil
	return buf
}
