package arrowipc

import "encoding/binary"

// table is a flatbuffer table inside buf. Every read is checked against buf, so that
// hostile bytes give ok == false: the generated readers would panic.
type table struct {
	buf []byte
	pos int // of the table
	vt  int // of its vtable
	vtn int // the vtable's length in bytes
}

// rootTable returns the table that buf's first four bytes point to.
func rootTable(buf []byte) (table, bool) {
	off, ok := uint32At(buf, 0)
	if !ok {
		return table{}, false
	}
	return tableAt(buf, int64(off))
}

// tableAt returns the table at pos.
func tableAt(buf []byte, pos int64) (table, bool) {
	back, ok := uint32At(buf, pos)
	if !ok {
		return table{}, false
	}
	vt := pos - int64(int32(back))
	n, ok := uint16At(buf, vt)
	if !ok || n < 4 || n%2 != 0 || vt+int64(n) > int64(len(buf)) {
		return table{}, false
	}
	return table{buf: buf, pos: int(pos), vt: int(vt), vtn: int(n)}, true
}

// field returns where field number i lies; 0 says that it is absent.
func (t table) field(i int) (pos int64, ok bool) {
	slot := 4 + 2*i
	if slot+2 > t.vtn {
		return 0, true
	}
	off, ok := uint16At(t.buf, int64(t.vt+slot))
	if !ok {
		return 0, false
	}
	if off == 0 {
		return 0, true
	}
	return int64(t.pos) + int64(off), true
}

// uint8Field returns field i, or 0 if it is absent.
func (t table) uint8Field(i int) (uint8, bool) {
	pos, ok := t.field(i)
	if !ok || pos == 0 {
		return 0, ok
	}
	if pos >= int64(len(t.buf)) {
		return 0, false
	}
	return t.buf[pos], true
}

// int16Field returns field i, or 0 if it is absent.
func (t table) int16Field(i int) (int16, bool) {
	pos, ok := t.field(i)
	if !ok || pos == 0 {
		return 0, ok
	}
	v, ok := uint16At(t.buf, pos)
	return int16(v), ok
}

// int64Field returns field i, or 0 if it is absent.
func (t table) int64Field(i int) (int64, bool) {
	pos, ok := t.field(i)
	if !ok || pos == 0 {
		return 0, ok
	}
	if pos+8 > int64(len(t.buf)) {
		return 0, false
	}
	return int64(binary.LittleEndian.Uint64(t.buf[pos:])), true
}

// tableField returns the table that field i points to; absent is not ok.
func (t table) tableField(i int) (table, bool) {
	pos, ok := t.field(i)
	if !ok || pos == 0 {
		return table{}, false
	}
	off, ok := uint32At(t.buf, pos)
	if !ok {
		return table{}, false
	}
	return tableAt(t.buf, pos+int64(off))
}

// vectorField returns the vector that field i points to, whose elements take width
// bytes each; absent is empty.
func (t table) vectorField(i, width int) (vector, bool) {
	pos, ok := t.field(i)
	if !ok || pos == 0 {
		return vector{}, ok
	}
	off, ok := uint32At(t.buf, pos)
	if !ok {
		return vector{}, false
	}
	n, ok := uint32At(t.buf, pos+int64(off))
	start := pos + int64(off) + 4
	if !ok || start+int64(width)*int64(n) > int64(len(t.buf)) {
		return vector{}, false
	}
	return vector{buf: t.buf, start: start, n: int(n)}, true
}

// vector is where a vector lies.
type vector struct {
	buf   []byte
	start int64
	n     int
}

// table returns element i of a vector of tables.
func (v vector) table(i int) (table, bool) {
	pos := v.start + 4*int64(i)
	off, ok := uint32At(v.buf, pos)
	if !ok {
		return table{}, false
	}
	return tableAt(v.buf, pos+int64(off))
}

func uint16At(buf []byte, pos int64) (uint16, bool) {
	if pos < 0 || pos+2 > int64(len(buf)) {
		return 0, false
	}
	return binary.LittleEndian.Uint16(buf[pos:]), true
}

func uint32At(buf []byte, pos int64) (uint32, bool) {
	if pos < 0 || pos+4 > int64(len(buf)) {
		return 0, false
	}
	return binary.LittleEndian.Uint32(buf[pos:]), true
}
