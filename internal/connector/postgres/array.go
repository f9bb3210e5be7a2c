package postgres

import (
	"encoding/binary"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// list is a column of arrays. split hands the elements of one value to add, nil for null.
type list struct {
	validity
	dt      arrow.DataType
	split   func(v []byte, add func([]byte) error) error
	addElem func([]byte) error // add, made once: a closure per value would be garbage
	elems   column
	ends    offsets
	length  int
}

func newList(elem arrow.Field, elems func() column, split func([]byte, func([]byte) error) error) func() column {
	return func() column {
		c := &list{dt: arrow.ListOfField(elem), split: split, elems: elems()}
		c.addElem = c.add
		return c
	}
}

func (c *list) append(v []byte) error {
	if v == nil {
		c.ends.add(c.length)
		c.addNull()
		return nil
	}
	if err := c.split(v, c.addElem); err != nil {
		return err
	}
	c.ends.add(c.length)
	c.addValid()
	return nil
}

func (c *list) add(elem []byte) error {
	c.length++
	return c.elems.append(elem)
}

func (c *list) finish() arrow.Array {
	bits, n, nulls := c.take()
	c.length = 0
	elems := c.elems.finish()
	defer elems.Release()
	return newArray(c.dt, n, nulls, []*memory.Buffer{bits, c.ends.finish()}, elems)
}

func notPlainList() error {
	return &misfit{"an array of several dimensions or with a lower bound other than 1"}
}

// splitBinary reads an array in the binary format: dimensions, a flag, the element's
// type, length and lower bound of each dimension, then the elements with their lengths.
func splitBinary(v []byte, add func([]byte) error) error {
	if len(v) < 12 {
		return malformed("array", v)
	}
	dims := binary.BigEndian.Uint32(v)
	if dims == 0 {
		return nil
	}
	if dims != 1 {
		return notPlainList()
	}
	if len(v) < 20 {
		return malformed("array", v)
	}
	count := int(int32(binary.BigEndian.Uint32(v[12:])))
	if binary.BigEndian.Uint32(v[16:]) != 1 {
		return notPlainList()
	}
	rest := v[20:]
	if count < 0 || count > len(rest)/4 {
		return malformed("array", v)
	}
	for range count {
		elem, tail, ok := cutElement(rest)
		if !ok {
			return malformed("array", v)
		}
		if err := add(elem); err != nil {
			return err
		}
		rest = tail
	}
	if len(rest) != 0 {
		return malformed("array", v)
	}
	return nil
}

// cutElement takes a length and so many bytes off the front; length -1 is null.
func cutElement(v []byte) (elem, rest []byte, ok bool) {
	if len(v) < 4 {
		return nil, nil, false
	}
	n := int(int32(binary.BigEndian.Uint32(v)))
	v = v[4:]
	if n == -1 {
		return nil, v, true
	}
	if n < 0 || n > len(v) {
		return nil, nil, false
	}
	return v[:n:n], v[n:], true
}

// splitText reads an array in the text format, {a,NULL,"with \" quotes"}, whose
// elements are separated by delim.
func splitText(delim byte) func(v []byte, add func([]byte) error) error {
	return func(v []byte, add func([]byte) error) error {
		if len(v) < 2 {
			return malformed("array", v)
		}
		if v[0] == '[' {
			return notPlainList()
		}
		if v[0] != '{' || v[len(v)-1] != '}' {
			return malformed("array", v)
		}
		body := v[1 : len(v)-1]
		if len(body) == 0 {
			return nil
		}
		for {
			elem, rest, more, err := cutText(body, delim)
			if err != nil {
				return err
			}
			if err := add(elem); err != nil {
				return err
			}
			if !more {
				return nil
			}
			body = rest
		}
	}
}

// cutText takes one element off the front; more says that a delimiter followed it.
func cutText(v []byte, delim byte) (elem, rest []byte, more bool, err error) {
	if len(v) > 0 && v[0] == '{' {
		return nil, nil, false, notPlainList()
	}
	if len(v) > 0 && v[0] == '"' {
		return cutQuoted(v, delim)
	}
	for i, b := range v {
		switch b {
		case '"', '{', '}', '\\':
			return nil, nil, false, malformed("array", v)
		case delim:
			return unquoted(v[:i]), v[i+1:], true, nil
		}
	}
	return unquoted(v), nil, false, nil
}

func unquoted(v []byte) []byte {
	if string(v) == "NULL" {
		return nil
	}
	return v
}

func cutQuoted(v []byte, delim byte) (elem, rest []byte, more bool, err error) {
	elem = make([]byte, 0, len(v))
	for i := 1; i < len(v); i++ {
		switch {
		case v[i] == '\\' && i+1 < len(v):
			i++
			elem = append(elem, v[i])
		case v[i] == '"' && i+1 == len(v):
			return elem, nil, false, nil
		case v[i] == '"' && v[i+1] == delim:
			return elem, v[i+2:], true, nil
		case v[i] == '"' || v[i] == '\\':
			return nil, nil, false, malformed("array", v)
		default:
			elem = append(elem, v[i])
		}
	}
	return nil, nil, false, malformed("array", v)
}
