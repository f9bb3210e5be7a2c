package relay

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

// TestAnOutageIsToldTwice: however many connections it costs.
func TestAnOutageIsToldTwice(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	o := outage{log: slog.New(slog.NewTextHandler(&log, nil))}
	member := netip.MustParseAddr("169.254.7.1")
	o.over()
	for range 2 {
		for range 100 {
			o.failed(member, errors.New("connection refused"))
		}
		o.over()
		o.over()
	}
	for part, want := range map[string]int{"level=WARN": 2, "level=INFO": 2, "refused=100": 2, "connection refused": 2, "tunnelAddress=169.254.7.1": 2} {
		if got := strings.Count(log.String(), part); got != want {
			t.Errorf("%q stands %d times in the log, want %d:\n%s", part, got, want, log.String())
		}
	}
}
