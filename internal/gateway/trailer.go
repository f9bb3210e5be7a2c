package gateway

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// maxTrailer bounds the error's trailer: Go's HTTP client refuses trailers that do
// not fit its read buffer (4 KiB) all together.
const maxTrailer = 3 << 10

// errorTrailer encodes an error for a trailer. What does not fit is cut: the message last.
func errorTrailer(e *errs.Error) string {
	short := *e
	for _, text := range []*string{&short.Hint, &short.Object, &short.Field, &short.Message} {
		if s := asciiJSON(&short); len(s) <= maxTrailer {
			return s
		}
		*text = shorten(*text, &short)
	}
	return asciiJSON(&short)
}

// shorten cuts text until e, of which it is a part, would fit. Each rune counts with what
// it takes at the most.
func shorten(text string, e *errs.Error) string {
	excess := len(asciiJSON(e)) - maxTrailer + len(`\u2026`)
	runes := []rune(text)
	n := len(runes)
	for ; n > 0 && excess > 0; n-- {
		excess -= len(asciiJSON(string(runes[n-1]))) - len(`""`)
	}
	return string(runes[:n]) + "…"
}

// asciiJSON is JSON in printable ASCII, as a header's value must be.
func asciiJSON(doc any) string {
	text, err := json.Marshal(doc)
	if err != nil {
		return `{"class":"internal","message":"the answer can't be encoded"}`
	}
	var b strings.Builder
	for _, r := range string(text) {
		switch {
		case r < 0x7F:
			b.WriteRune(r)
		case r <= 0xFFFF:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			hi, lo := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		}
	}
	return b.String()
}
