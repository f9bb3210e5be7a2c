package format

import (
	"io"

	"github.com/apache/arrow-go/v18/arrow"
)

// CSV writes RFC 4180: a header line, lines that end in CRLF, cells quoted where they
// must be. NULL is an empty cell; an empty text is "".
func CSV(w io.Writer, r io.Reader) (rows int64, err error) {
	src, err := open(r)
	if err != nil {
		return 0, err
	}
	defer src.close()

	buf := appendCSVHeader(make([]byte, 0, 2*chunk), src.schema())
	var cell []byte
	err = src.each(func(batch arrow.RecordBatch) error {
		columns := columnsOf(batch)
		for row := range int(batch.NumRows()) {
			buf, cell = appendCSVRow(buf, cell, columns, row)
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
	_, err = send(w, buf) // of a result without rows, the header is not sent yet
	return rows, err
}

func appendCSVHeader(dst []byte, schema *arrow.Schema) []byte {
	for i, f := range schema.Fields() {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendCell(dst, []byte(f.Name))
	}
	return append(dst, "\r\n"...)
}

// appendCSVRow writes a line; cell is scratch that it returns for the next one.
func appendCSVRow(dst, cell []byte, columns []column, row int) (line, scratch []byte) {
	for i, c := range columns {
		if i > 0 {
			dst = append(dst, ',')
		}
		if c.null(row) {
			continue
		}
		start := len(dst)
		if dst = c.text(dst, row); quoted(dst[start:]) {
			cell = append(cell[:0], dst[start:]...)
			dst = appendQuoted(dst[:start], cell)
		}
	}
	return append(dst, "\r\n"...), cell
}

func appendCell(dst, cell []byte) []byte {
	if quoted(cell) {
		return appendQuoted(dst, cell)
	}
	return append(dst, cell...)
}

// quoted says whether a cell must, or had better, stand in quotes.
func quoted(cell []byte) bool {
	if len(cell) == 0 || cell[0] == ' ' || cell[len(cell)-1] == ' ' {
		return true
	}
	for _, c := range cell {
		if c <= ',' && (c == ',' || c == '"' || c == '\r' || c == '\n') { // most are above: one comparison
			return true
		}
	}
	return false
}

func appendQuoted(dst, cell []byte) []byte {
	dst = append(dst, '"')
	for _, c := range cell {
		if c == '"' {
			dst = append(dst, '"')
		}
		dst = append(dst, c)
	}
	return append(dst, '"')
}
