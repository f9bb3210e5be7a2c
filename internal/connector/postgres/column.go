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
	// finish returns the values so far and starts anew.
	finish() arrow.Array
}

// misfit is a value that the column's Arrow type cannot hold.
type misfit struct{ what string }

func (m *misfit) Error() string { return m.what }

func malformed(what string, v []byte) error {
	return fmt.Errorf("malformed %s of %d bytes", what, len(v))
}

// fixed is a column of values of one width.
type fixed[T any] struct {
	validity
	dt    arrow.DataType
	read  func([]byte) (T, error)
	bytes func([]T) []byte
	vals  []T
}

func (c *fixed[T]) append(v []byte) error {
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
	vals := c.vals
	c.vals = make([]T, 0, max(minCapacity, len(vals)))
	bits, n, nulls := c.take()
	return newArray(c.dt, n, nulls, []*memory.Buffer{bits, memory.NewBufferBytes(c.bytes(vals))})
}

// boolean is a column of bits.
type boolean struct {
	validity
	vals []byte
}

func (c *boolean) append(v []byte) error {
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
	vals := c.vals
	c.vals = make([]byte, 0, max(64, len(vals)))
	bits, n, nulls := c.take()
	return newArray(arrow.FixedWidthTypes.Boolean, n, nulls, []*memory.Buffer{bits, memory.NewBufferBytes(vals)})
}

// variable is a column of texts or byte strings, which it copies as they are. Texts are
// checked: a query can change the encoding that the server sends in.
type variable struct {
	validity
	dt      arrow.DataType
	isText  bool
	offsets []int32
	data    []byte
}

func newVariable(dt arrow.DataType) *variable {
	return &variable{dt: dt, isText: dt.ID() == arrow.STRING, offsets: make([]int32, 1, minCapacity)}
}

func (c *variable) append(v []byte) error {
	if v == nil {
		c.offsets = append(c.offsets, int32(len(c.data)))
		c.addNull()
		return nil
	}
	if c.isText && !utf8.Valid(v) {
		return &misfit{"text that is not UTF-8"}
	}
	c.data = append(c.data, v...)
	c.offsets = append(c.offsets, int32(len(c.data)))
	c.addValid()
	return nil
}

func (c *variable) finish() arrow.Array {
	offsets, data := c.offsets, c.data
	c.offsets = make([]int32, 1, max(minCapacity, len(offsets)))
	c.data = make([]byte, 0, max(64, len(data)+len(data)/8))
	bits, n, nulls := c.take()
	return newArray(c.dt, n, nulls, []*memory.Buffer{
		bits, memory.NewBufferBytes(arrow.Int32Traits.CastToBytes(offsets)), memory.NewBufferBytes(data),
	})
}
