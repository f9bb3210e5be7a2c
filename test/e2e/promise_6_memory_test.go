package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/client"
)

// TestPromise6MemberMemoryFlat compares the peak memory of fresh members: after a million
// rows, after ten million, and after ten million to a client that stops reading for a
// while, when everything on the way fills up.
func TestPromise6MemberMemoryFlat(t *testing.T) {
	busy.take(t)
	c := newCorp(t)
	api := c.Client()
	base := c.peakAfter(t, api, 1_000_000, 0)
	large := c.peakAfter(t, api, 10_000_000, 0)
	stalled := c.peakAfter(t, api, 10_000_000, 5*time.Second)
	t.Logf("peak of the member: %d KiB after 1 million rows, %d after 10 million, %d with a reader that stalls", base, large, stalled)
	for what, peak := range map[string]int{"10 million rows": large, "10 million rows and a stalled reader": stalled} {
		if ratio := float64(peak) / float64(base); ratio > 1.3 {
			t.Errorf("%s took %.2f times the memory of 1 million", what, ratio)
		}
	}
}

// peakAfter has a fresh member stream that many rows of 16 bytes, to a client that stops
// for a while after a third, and returns the member's peak resident memory in KiB.
func (c *corp) peakAfter(t *testing.T, api *client.Client, rows int, stall time.Duration) int {
	t.Helper()
	c.Must("gateway", "pause", gateway)
	c.Must("gateway", "wake", gateway)
	m := onlyMember(t, api)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	// A set-returning function in the select list is not kept by the server, as it is in "from".
	sql := fmt.Sprintf("select g, g::float8 / 7 as f from (select generate_series(1::bigint, %d) as g) as s", rows)
	res, err := api.Query(ctx, client.Query{Source: source, SQL: sql, Class: "refresh"}, client.MediaArrow)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	n, err := io.CopyN(io.Discard, res.Body, int64(rows)*16/3)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(stall)
	rest, err := io.Copy(io.Discard, res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if n+rest < int64(rows)*16 {
		t.Fatalf("%d bytes for %d rows", n+rest, rows)
	}
	if again := onlyMember(t, api); again.ID != m.ID {
		t.Fatal("another member answered")
	}
	return peakKiB(t, c.pidOf(t, m))
}

// peakKiB is the most memory that a process has had resident.
func peakKiB(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("process %d has no peak", pid)
	return 0
}
