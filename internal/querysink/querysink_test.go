package querysink

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/core"
)

var update = flag.Bool("update", false, "write the golden files anew")

func record(id string) core.Query {
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	return core.Query{
		ID: id, Tenant: "default", User: "ann", Source: "orders", Gateway: "bi", SQL: "select '<ü>'", Class: core.ClassInteractive,
		State: core.QueryFailed, StartedAt: at, EndedAt: at.Add(1500 * time.Microsecond), Member: "m-2", Address: netip.MustParseAddr("10.20.0.5"),
		QueuedBehind: 3, Retried: "member m-1: the connection to it was lost", Rows: 7, Bytes: 512,
		Phases: []core.Phase{
			{Name: core.PhaseQueued, Duration: 250 * time.Microsecond}, {Name: core.PhaseRetried, Duration: time.Millisecond},
			{Name: core.PhaseQueued, Duration: 250 * time.Microsecond},
		},
		ErrorClass: "source", ErrorStep: "execute", Error: "division by zero",
	}
}

func TestLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "queries.jsonl")
	s, err := Open(Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	bare := core.Query{ID: "q-2", State: core.QuerySucceeded, SQLHash: "sha256:ab"}
	if err := s.Write([]core.Query{record("q-1"), bare}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/lines.jsonl"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", info.Mode().Perm())
	}
}

// TestRotation writes more than fits and finds the newest records, whole and in order, in
// as many files as are kept; another process goes on where the first one stopped.
func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "queries.jsonl")
	const records, perFile = 50, 4
	first, _, _ := strings.Cut(string(must(os.ReadFile("testdata/lines.jsonl"))), "\n")
	line := len(first) + 1
	opts := Options{Path: path, MaxBytes: int64(line*perFile + line/2), Files: 2}
	for i := 0; i < records; {
		s, err := Open(opts)
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := s.Write([]core.Query{record(fmt.Sprintf("%03d", i))}); err != nil {
				t.Fatal(err)
			}
			i++
		}
		s.Close()
	}
	var got []string
	for _, name := range []string{path + ".2", path + ".1", path} {
		for l := range strings.Lines(string(must(os.ReadFile(name)))) {
			got = append(got, l[7:10])
		}
	}
	var want []string
	for i := records - len(got); i < records; i++ {
		want = append(want, fmt.Sprintf("%03d", i))
	}
	if diff := cmp.Diff(want, got); diff != "" || len(got) <= 2*perFile {
		t.Errorf("%d records: %s", len(got), diff)
	}
	if _, err := os.Stat(path + ".3"); err == nil {
		t.Error("a file too many is kept")
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
