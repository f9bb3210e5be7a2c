package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
)

// The bounds of a large result: how much memory its member may ever use, and how long
// it may take on a slow, busy machine.
const (
	bulkRows      = 10_000_000
	bulkMaxMemory = 200 << 20
	bulkMaxTime   = 6 * time.Minute
)

// TestTenMillionRows streams a large result, checks that it is the server's, and that
// the member's memory did not grow with it.
func TestTenMillionRows(t *testing.T) {
	if testing.Short() {
		t.Skip("streams ten million rows: about half a minute of two cores")
	}
	busy.take(t)
	c := newCorp(t)
	rows := fmt.Sprintf("from generate_series(1, %d) i", bulkRows)
	sql := "select i::int8 as id, (i::int8 * 7919 % 1000003)::int4 as part, 'row ' || i as label, nullif(i % 10, 0) as digit " + rows
	want := c.PG.Rows(t, "select sum(i::int8 * 7919 % 1000003), sum(length('row ' || i)), count(nullif(i % 10, 0)) "+rows)[0]

	c.Must("gateway", "wake", gateway)
	before := memberMemory(t, c)
	begun := time.Now()
	n, sum, length, digits := sumResult(t, c, sql)
	took := time.Since(begun)

	if got := []string{fmt.Sprint(sum), fmt.Sprint(length), fmt.Sprint(digits)}; n != bulkRows || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%d rows with the sums %v; the server says %d and %v", n, got, bulkRows, want)
	}
	peak := memberMemory(t, c)
	t.Logf("%d rows in %v; the member's peak memory: %d MiB, before the query %d MiB", n, took.Round(time.Millisecond), peak>>20, before>>20)
	if peak > bulkMaxMemory {
		t.Errorf("the member used %d MiB, the bound is %d MiB", peak>>20, bulkMaxMemory>>20)
	}
	if took > bulkMaxTime {
		t.Errorf("took %v, the bound is %v", took, bulkMaxTime)
	}
	if rec := c.records()[0]; rec.State != "succeeded" || rec.Rows != bulkRows {
		t.Errorf("the query log: %+v", rec)
	}
}

// sumResult streams a result and adds up its columns.
func sumResult(t *testing.T, c *corp, sql string) (rows, sum, length, notNull int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bulkMaxTime+time.Minute)
	defer cancel()
	resp := c.httpQuery(ctx, c.Token(), mediaArrow, sql)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d", resp.StatusCode)
	}
	rd, err := ipc.NewReader(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Release()
	for rd.Next() {
		b := rd.RecordBatch()
		rows += b.NumRows()
		for _, v := range b.Column(1).(*array.Int32).Int32Values() {
			sum += int64(v)
		}
		labels := b.Column(2).(*array.String)
		length += int64(len(labels.ValueBytes()))
		notNull += b.NumRows() - int64(b.Column(3).NullN())
	}
	if err := rd.Err(); err != nil {
		t.Fatal(err)
	}
	return rows, sum, length, notNull
}

var peakPattern = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// memberMemory is the most memory that the installation's only member ever had
// resident, in bytes.
func memberMemory(t *testing.T, c *corp) int64 {
	t.Helper()
	pids := memberPIDs(c)
	if len(pids) != 1 {
		t.Fatalf("want one member's process, found %v", pids)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	m := peakPattern.FindSubmatch(status)
	if m == nil {
		t.Fatalf("no peak in:\n%s", status)
	}
	kb, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return kb << 10
}

// memberPIDs are the processes in the control groups of the installation's members.
func memberPIDs(c *corp) []int {
	var out []int
	members := c.adopted()
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), "sluice-"+c.Instance()) || strings.Contains(string(text), "(deleted)") {
			continue
		}
		_, container, _ := strings.Cut(string(text), "/sluice-"+c.Instance()+"/")
		container, _, _ = strings.Cut(container, "\n")
		if memberIn(container, members) == "" {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(file, "/")[2]); err == nil {
			out = append(out, pid)
		}
	}
	return out
}
