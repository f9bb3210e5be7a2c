package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// columnGap stands between two columns.
const columnGap = "  "

// PrintTable prints rows under headers, fitted to the terminal if w is one. Columns
// that are empty in every row are left out.
func PrintTable(w io.Writer, headers []string, rows [][]string) error {
	widths := make([]int, len(headers))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(printable(cell)))
		}
	}
	for i, h := range headers {
		if widths[i] > 0 || len(rows) == 0 {
			widths[i] = max(widths[i], len(h))
		}
	}
	if width, ok := isTerminal(w); ok && width > 0 {
		fit(widths, width)
	}
	var out strings.Builder
	line(&out, widths, headers)
	for _, row := range rows {
		line(&out, widths, row)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// fit narrows the widest columns until the table has the width, or nothing gives. The first
// one stays: it is the name by which a row's object is asked for.
func fit(widths []int, width int) {
	const least = 8
	for {
		total, widest := 0, -1
		for i, n := range widths {
			if n > 0 {
				total += n + len(columnGap)
			}
			if i > 0 && (widest < 0 || n > widths[widest]) {
				widest = i
			}
		}
		if total-len(columnGap) <= width || widest < 0 || widths[widest] <= least {
			return
		}
		widths[widest]--
	}
}

func line(out *strings.Builder, widths []int, cells []string) {
	var b strings.Builder
	for i, cell := range cells {
		if widths[i] == 0 {
			continue
		}
		fmt.Fprintf(&b, "%-*s%s", widths[i], cut(printable(cell), widths[i]), columnGap)
	}
	out.WriteString(strings.TrimRight(b.String(), " "))
	out.WriteByte('\n')
}

// cut shortens a text to n characters, the last of which then says so.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// printable replaces what a terminal would obey: names, statements and errors come
// from others.
func printable(s string) string {
	if !strings.ContainsFunc(s, unicode.IsControl) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			fmt.Fprintf(&b, "\\x%02x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// milliseconds shows a duration in ms, with as many digits as say something.
func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 10 {
		return fmt.Sprintf("%.2f ms", ms)
	}
	if ms < 100 {
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", ms)
}
