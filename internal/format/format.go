// Package format turns an Arrow IPC stream into what people and programs read: JSON,
// CSV, Parquet, Arrow itself, and tables for terminals.
//
// It owns those forms and what each makes of a value (see text.go). It does not own
// where a stream comes from or goes to. The HTTP front end and the CLI call it.
//
// Every encoder streams: it holds one record batch, and for Parquet one row group, at
// a time. Only a whole stream gives a document that ends properly: if the input
// breaks off, or its reader gives an error, the output stays without its end (JSON
// unterminated, Parquet without its footer, Arrow without its end-of-stream marker)
// and the error is returned. CSV has no end of its own: whoever carries it must tell.
package format

import (
	"io"
	"mime"
	"strconv"
	"strings"
)

// The media types of the forms.
const (
	MediaJSON    = "application/json"
	MediaCSV     = "text/csv"
	MediaArrow   = "application/vnd.apache.arrow.stream"
	MediaParquet = "application/vnd.apache.parquet"
)

// Encoder reads an Arrow IPC stream to its end and writes its rows to w. It returns
// how many rows it wrote. If w is a Flusher, it calls Flush once the rows of a batch (of
// Parquet, a row group) are written, not before the first.
type Encoder func(w io.Writer, r io.Reader) (rows int64, err error)

// Flusher is a writer that can be told that what it has is worth sending.
type Flusher interface{ Flush() error }

// Format is one form of a result.
type Format struct {
	Name   string // what users type: "json"
	Media  string // its media type
	Encode Encoder
}

// All lists the forms; the first is the default.
func All() []Format {
	return []Format{
		{"json", MediaJSON, JSON},
		{"csv", MediaCSV, CSV},
		{"arrow", MediaArrow, Arrow},
		{"parquet", MediaParquet, Parquet},
	}
}

// ByName finds a form by the name that users type.
func ByName(name string) (Format, bool) {
	for _, f := range All() {
		if strings.EqualFold(f.Name, name) {
			return f, true
		}
	}
	return Format{}, false
}

// Negotiate picks the form that an Accept header likes best: the highest quality,
// then the order in All. An empty header means the default.
func Negotiate(accept string) (Format, bool) {
	if strings.TrimSpace(accept) == "" {
		return All()[0], true
	}
	var best Format
	bestQuality := 0.0
	for _, f := range All() {
		if q := quality(accept, f.Media); q > bestQuality {
			best, bestQuality = f, q
		}
	}
	return best, bestQuality > 0
}

// quality is what an Accept header gives to a media type: the most specific range
// that covers it decides.
func quality(accept, media string) float64 {
	main, _, _ := strings.Cut(media, "/")
	bestRank, q := 0, 0.0
	for part := range strings.SplitSeq(accept, ",") {
		name, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		rank := map[string]int{"*/*": 1, main + "/*": 2, media: 3}[name]
		if rank > bestRank {
			bestRank, q = rank, weight(params["q"])
		}
	}
	return q
}

// weight reads a quality value; none, or a bad one, counts as 1.
func weight(s string) float64 {
	q, err := strconv.ParseFloat(s, 64)
	if err != nil || q < 0 || q > 1 {
		return 1
	}
	return q
}

// flush passes a hint on, if w takes any.
func flush(w io.Writer) error {
	if f, ok := w.(Flusher); ok {
		return f.Flush()
	}
	return nil
}
