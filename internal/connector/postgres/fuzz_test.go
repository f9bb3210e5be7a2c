package postgres

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
)

// FuzzColumns feeds every decoder with hostile bytes: nothing may panic, and what
// comes out must be a sound array, no larger than the bytes warrant.
func FuzzColumns(f *testing.F) {
	arr := func(dims, count, bound uint32, tail string) []byte {
		b := binary.BigEndian.AppendUint32(nil, dims)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 23)
		b = binary.BigEndian.AppendUint32(b, count)
		return append(binary.BigEndian.AppendUint32(b, bound), tail...)
	}
	for _, seed := range [][]byte{
		nil, {}, {1}, {0, 1}, {0, 0, 0, 1}, []byte("12345678"),
		{0, 2, 0, 1, 0x40, 0, 0, 2, 0, 1, 0x04, 0xd2}, {0, 0, 0, 0, 0xc0, 0, 0, 0}, {0xff, 0xff, 0x7f, 0xff, 0, 0, 0, 0},
		arr(1, 1, 1, "\x00\x00\x00\x04\x00\x00\x00\x07"), arr(1, 1<<31-1, 1, ""), arr(1, 1, 1, "\xff\xff\xff\xff"), arr(2, 1, 1, ""),
		[]byte(`{a,"b\"c",NULL}`), []byte(`{"`), []byte(`{{1}}`), []byte(`[0:1]={1,2}`), []byte("\xff\xfe"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, v []byte) {
		for _, pl := range everyPlan() {
			checkColumn(t, pl, v)
			compareBlock(t, pl, [][]byte{nil, v, v, nil, v[:len(v)/2], v})
		}
	})
}

func checkColumn(t *testing.T, pl plan, v []byte) {
	c := pl.col()
	if c.append(nil) != nil {
		t.Fatal("null refused")
	}
	rows := 1
	if c.append(v) == nil {
		rows++
	} else {
		return // a run ends with the first error
	}
	a := c.finish()
	defer a.Release()
	if a.Len() != rows || !arrow.TypeEqual(a.DataType(), pl.field.Type) {
		t.Fatalf("%s: %d rows of %s from %q", pl.field.Type, a.Len(), a.DataType(), v)
	}
	for i := range a.Len() {
		if len(a.ValueStr(i)) > 1000+40*len(v) {
			t.Fatalf("%s: %d bytes make %d", pl.field.Type, len(v), len(a.ValueStr(i)))
		}
	}
}

func FuzzFirstWord(f *testing.F) {
	for _, s := range []string{"select 1", "/* /* */ copy", "--\ncopy", "((select", "", "/*", "*/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if w := firstWord(s); !strings.Contains(strings.ToLower(s), w) {
			t.Fatalf("%q is not in %q", w, s)
		}
	})
}
