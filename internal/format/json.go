package format

import (
	"io"

	"github.com/apache/arrow-go/v18/arrow"
)

// chunk is how much text is gathered before it is written.
const chunk = 32 << 10

// JSON writes {"columns":[{"name":…,"type":…},…],"rows":[[…],…]}, a row per line.
func JSON(w io.Writer, r io.Reader) (rows int64, err error) {
	src, err := open(r)
	if err != nil {
		return 0, err
	}
	defer src.close()

	buf := appendColumns(make([]byte, 0, 2*chunk), src.schema())
	err = src.each(func(batch arrow.RecordBatch) error {
		columns := columnsOf(batch)
		for row := range int(batch.NumRows()) {
			buf = appendJSONRow(buf, columns, row, rows == 0)
			rows++
			if len(buf) >= chunk {
				if _, err := w.Write(buf); err != nil {
					return err
				}
				buf = buf[:0]
			}
		}
		buf, err = send(w, buf)
		return err
	})
	if err != nil {
		return rows, err
	}
	_, err = send(w, append(buf, "\n]}\n"...))
	return rows, err
}

// appendColumns opens the document.
func appendColumns(dst []byte, schema *arrow.Schema) []byte {
	dst = append(dst, `{"columns":[`...)
	for i, f := range schema.Fields() {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendJSONString(append(dst, `{"name":`...), f.Name)
		dst = appendJSONString(append(dst, `,"type":`...), typeName(f.Type))
		dst = append(dst, '}')
	}
	return append(dst, `],"rows":[`...)
}

func appendJSONRow(dst []byte, columns []column, row int, first bool) []byte {
	if !first {
		dst = append(dst, ',')
	}
	dst = append(dst, "\n["...)
	for i, c := range columns {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = c.jsonValue(dst, row)
	}
	return append(dst, ']')
}

func columnsOf(batch arrow.RecordBatch) []column {
	columns := make([]column, batch.NumCols())
	for i := range columns {
		columns[i] = newColumn(batch.Column(i))
	}
	return columns
}

// send writes buf, says that it is worth sending, and returns it empty.
func send(w io.Writer, buf []byte) ([]byte, error) {
	if _, err := w.Write(buf); err != nil {
		return buf, err
	}
	return buf[:0], flush(w)
}
