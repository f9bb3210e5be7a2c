package format

import (
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// nestedAppender writes lists, structs and maps as JSON, nil for other arrays.
func nestedAppender(arr arrow.Array) appender {
	switch a := arr.(type) {
	case *array.Map:
		return mapAppender(a)
	case array.ListLike:
		return listAppender(a)
	case *array.Struct:
		return structAppender(a)
	}
	return nil
}

func listAppender(a array.ListLike) appender {
	values := newColumn(a.ListValues())
	return func(dst []byte, row int) []byte {
		start, end := a.ValueOffsets(row)
		dst = append(dst, '[')
		for i := start; i < end; i++ {
			if i > start {
				dst = append(dst, ',')
			}
			dst = values.jsonValue(dst, int(i))
		}
		return append(dst, ']')
	}
}

// mapAppender writes [[key, value], …]: keys need not be text, nor differ.
func mapAppender(a *array.Map) appender {
	keys, items := newColumn(a.Keys()), newColumn(a.Items())
	return func(dst []byte, row int) []byte {
		start, end := a.ValueOffsets(row)
		dst = append(dst, '[')
		for i := start; i < end; i++ {
			if i > start {
				dst = append(dst, ',')
			}
			dst = keys.jsonValue(append(dst, '['), int(i))
			dst = items.jsonValue(append(dst, ','), int(i))
			dst = append(dst, ']')
		}
		return append(dst, ']')
	}
}

func structAppender(a *array.Struct) appender {
	fields := a.DataType().(*arrow.StructType).Fields()
	names := make([][]byte, len(fields))
	columns := make([]column, len(fields))
	for i, f := range fields {
		names[i] = append(appendJSONString(nil, f.Name), ':')
		columns[i] = newColumn(a.Field(i))
	}
	return func(dst []byte, row int) []byte {
		dst = append(dst, '{')
		for i, c := range columns {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = c.jsonValue(append(dst, names[i]...), row)
		}
		return append(dst, '}')
	}
}

// validRune is the length of the valid rune that s starts with, or 0.
func validRune(s string) int {
	r, n := utf8.DecodeRuneInString(s)
	if r == utf8.RuneError && n == 1 {
		return 0
	}
	return n
}
