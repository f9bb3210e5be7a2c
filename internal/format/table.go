package format

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/apache/arrow-go/v18/arrow"
	"golang.org/x/text/width"
)

// TableOptions shape a table.
type TableOptions struct {
	// Width is how many columns of characters the terminal has; lines are cut to it.
	// Default: no limit.
	Width int
	// MaxColWidth bounds one column. Default 60.
	MaxColWidth int
}

// defaultColWidth is MaxColWidth's default; minColWidth what a column keeps, if it is
// that wide at all, when a table is squeezed into Width.
const (
	defaultColWidth = 60
	minColWidth     = 5
)

// gap stands between two columns.
const gap = "  "

// Table writes rows for people: a header, a rule, a line per row. The first rows
// decide how wide columns are; what does not fit is cut with …. NULL shows as NULL,
// numbers stand right, control characters show as their escapes. It must not be read
// by programs: use CSV or JSON.
func Table(w io.Writer, r io.Reader, opts TableOptions) (rows int64, err error) {
	src, err := open(r)
	if err != nil {
		return 0, err
	}
	defer src.close()
	if src.schema().NumFields() == 0 {
		return 0, src.each(func(arrow.RecordBatch) error { return nil })
	}
	t := &table{w: w, opts: opts, schema: src.schema()}
	err = src.each(func(batch arrow.RecordBatch) error {
		rows += batch.NumRows()
		return t.batch(batch)
	})
	if err != nil {
		return rows, err
	}
	if t.widths == nil {
		return rows, t.header(nil)
	}
	return rows, nil
}

type table struct {
	w      io.Writer
	opts   TableOptions
	schema *arrow.Schema
	widths []int // nil before the header was written
	limits []int // how far each may still grow
	buf    []byte
}

// lines is how many rows are laid out at a time.
const lines = 1000

// batch writes the rows of a batch, a chunk at a time.
func (t *table) batch(batch arrow.RecordBatch) error {
	columns := columnsOf(batch)
	n := int(batch.NumRows())
	for start := 0; start < n; start += lines {
		cells := cellsOf(columns, start, min(start+lines, n))
		if t.widths == nil {
			if err := t.header(cells); err != nil {
				return err
			}
		}
		for line := range slices.Chunk(cells, len(columns)) {
			t.line(line, ' ')
		}
		if err := t.send(); err != nil {
			return err
		}
	}
	return nil
}

// cellsOf renders rows from start to end, row by row.
func cellsOf(columns []column, start, end int) []string {
	cells := make([]string, 0, (end-start)*len(columns))
	var buf []byte
	for row := start; row < end; row++ {
		for _, c := range columns {
			if c.null(row) {
				cells = append(cells, "NULL")
				continue
			}
			buf = c.text(buf[:0], row)
			cells = append(cells, printable(string(buf)))
		}
	}
	return cells
}

// header decides the widths from the first rows and writes the column names.
func (t *table) header(cells []string) error {
	fields := t.schema.Fields()
	names := make([]string, len(fields))
	t.widths = make([]int, len(fields))
	for i, f := range fields {
		names[i] = printable(f.Name)
		t.widths[i] = displayWidth(names[i])
	}
	for i, cell := range cells {
		col := i % len(fields)
		t.widths[col] = max(t.widths[col], displayWidth(cell))
	}
	t.squeeze()
	t.line(names, ' ')
	t.line(make([]string, len(fields)), '-')
	return t.send()
}

// squeeze bounds each column and then narrows the widest ones until a line fits.
func (t *table) squeeze() {
	limit := t.opts.MaxColWidth
	if limit <= 0 {
		limit = defaultColWidth
	}
	for i := range t.widths {
		t.widths[i] = max(1, min(t.widths[i], limit))
		t.limits = append(t.limits, limit)
	}
	for t.opts.Width > 0 && t.total() > t.opts.Width {
		widest := 0
		for i, w := range t.widths {
			if w > t.widths[widest] {
				widest = i
			}
		}
		if t.widths[widest] <= minColWidth {
			return
		}
		t.widths[widest]--
		t.limits[widest] = t.widths[widest]
	}
}

// total is how wide a line is.
func (t *table) total() int {
	n := len(gap) * (len(t.widths) - 1)
	for _, w := range t.widths {
		n += w
	}
	return n
}

// widen lets a column grow for a cell of a later row, as far as there is room: a
// number that is cut misleads more than a line out of step.
func (t *table) widen(col, need int) {
	need = min(need, t.limits[col])
	if t.opts.Width > 0 {
		need = min(need, t.widths[col]+max(0, t.opts.Width-t.total()))
	}
	t.widths[col] = max(t.widths[col], need)
}

// line adds one line to the buffer, its cells padded with pad.
func (t *table) line(cells []string, pad byte) {
	start := len(t.buf)
	for i, cell := range cells {
		if i > 0 {
			t.buf = append(t.buf, gap...)
		}
		if n := displayWidth(cell); n > t.widths[i] {
			t.widen(i, n)
		}
		t.cell(cut(cell, t.widths[i]), t.widths[i], isNumber(t.schema.Field(i).Type), pad)
	}
	t.buf = trimRight(t.buf)
	if t.opts.Width > 0 && len(t.buf)-start > t.opts.Width {
		t.buf = append(t.buf[:start], cut(string(t.buf[start:]), t.opts.Width)...)
	}
	t.buf = append(t.buf, '\n')
}

func (t *table) cell(text string, space int, right bool, pad byte) {
	fill := strings.Repeat(string(pad), max(0, space-displayWidth(text)))
	if right {
		t.buf = append(append(t.buf, fill...), text...)
		return
	}
	t.buf = append(append(t.buf, text...), fill...)
}

func trimRight(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == ' ' {
		b = b[:len(b)-1]
	}
	return b
}

func (t *table) send() error {
	_, err := t.w.Write(t.buf)
	t.buf = t.buf[:0]
	if err != nil {
		return err
	}
	return flush(t.w)
}

// printable makes control characters and broken UTF-8 visible, so that a value can
// neither break the layout nor command the terminal.
func printable(s string) string {
	clean := strings.IndexFunc(s, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsGraphic(r) })
	if clean < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case unicode.IsGraphic(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// displayWidth is how many columns a terminal takes for s.
func displayWidth(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

func runeWidth(r rune) int {
	if r < 0x300 {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// cut shortens s to space columns, the last of them … if anything is lost.
func cut(s string, space int) string {
	if displayWidth(s) <= space {
		return s
	}
	used := 0
	for i, r := range s {
		if used+runeWidth(r) > space-1 {
			return s[:i] + "…"
		}
		used += runeWidth(r)
	}
	return s
}
