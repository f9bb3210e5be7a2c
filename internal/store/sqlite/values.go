package sqlite

import (
	"encoding/json"
	"net/netip"
	"time"
)

// nanos is how a time is stored.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// timeColumn scans what nanos stored.
type timeColumn struct{ to *time.Time }

func (c timeColumn) Scan(v any) error {
	if n, ok := v.(int64); ok && n != 0 {
		*c.to = time.Unix(0, n).UTC()
	}
	return nil
}

// address is how an address is stored: "" for none, one text for each.
func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

// addrColumn scans what address stored.
type addrColumn struct{ to *netip.Addr }

func (c addrColumn) Scan(v any) error {
	text, _ := v.(string)
	return c.to.UnmarshalText([]byte(text))
}

// jsonText is how a list is stored: always a list, never null.
func jsonText[T any](v []T) (string, error) {
	if v == nil {
		return "[]", nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

// jsonColumn scans what jsonText stored; an empty list is nil.
type jsonColumn[T any] struct{ to *[]T }

func (c jsonColumn[T]) Scan(v any) error {
	text, _ := v.(string)
	if text == "" || text == "[]" {
		return nil
	}
	return json.Unmarshal([]byte(text), c.to)
}
