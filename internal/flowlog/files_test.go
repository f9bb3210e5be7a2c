package flowlog

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testFiles(t *testing.T, keep time.Duration, maxBytes int64) *files {
	t.Helper()
	f, err := openFiles(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f.keep, f.maxBytes = keep, maxBytes
	return f
}

// someRecord has about so many bytes.
func someRecord(bytes int) Record {
	return Record{Version: Version, FlowRecords: FlowRecords{Flows: []ACL{{ACLID: "data", FlowGroups: []Group{{"rule", []string{strings.Repeat("x", bytes)}}}}}}}
}

func put(t *testing.T, f *files, at time.Time, bytes int) {
	t.Helper()
	if err := f.append(at, []Record{someRecord(bytes)}); err != nil {
		t.Fatal(err)
	}
}

// kept gives the files by name, with the number of records in each, all of them whole.
func kept(t *testing.T, f *files) map[string]int {
	t.Helper()
	names, err := f.names()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, n := range names {
		b, err := os.ReadFile(filepath.Join(f.dir, n))
		if err != nil {
			t.Fatal(err)
		}
		records, err := readRecords(b)
		if err != nil {
			t.Errorf("%s is not whole: %v", n, err)
		}
		out[n] = len(records)
	}
	return out
}

var noon = time.Date(2026, 11, 23, 12, 30, 0, 0, time.UTC)

func TestFilesAreOfOneHour(t *testing.T) {
	f := testFiles(t, 24*time.Hour, 1<<30)
	put(t, f, noon, 10)
	put(t, f, noon.Add(29*time.Minute), 10)
	put(t, f, noon.Add(30*time.Minute), 10)
	put(t, f, noon.Add(20*time.Minute), 10) // the clock was set back: no older file is opened
	want := map[string]int{"2026-11-23T12Z-0001.json": 2, "2026-11-23T13Z-0001.json": 2}
	if diff := cmp.Diff(want, kept(t, f)); diff != "" {
		t.Error(diff)
	}
}

func TestAnHourHasSeveralFilesIfItIsLong(t *testing.T) {
	f := testFiles(t, 24*time.Hour, 1<<30)
	for range 3 {
		put(t, f, noon, partBytes/2)
	}
	want := map[string]int{"2026-11-23T12Z-0001.json": 1, "2026-11-23T12Z-0002.json": 1, "2026-11-23T12Z-0003.json": 1}
	if diff := cmp.Diff(want, kept(t, f)); diff != "" {
		t.Error(diff)
	}
}

func TestFilesGoWhenTheyAreOld(t *testing.T) {
	f := testFiles(t, 48*time.Hour, 1<<30)
	for i := range 60 {
		put(t, f, noon.Add(time.Duration(i)*time.Hour), 10)
	}
	got := kept(t, f)
	if len(got) != 49 { // the hour that is written, and those that ended less than 48 hours ago
		t.Errorf("%d files are kept, want 49", len(got))
	}
	if got["2026-11-23T22Z-0001.json"] != 0 || got["2026-11-23T23Z-0001.json"] != 1 {
		t.Errorf("kept are %v", got)
	}
}

func TestTheOldestGoWhenThereIsTooMuch(t *testing.T) {
	f := testFiles(t, 365*24*time.Hour, 5000)
	for i := range 10 {
		put(t, f, noon.Add(time.Duration(i)*time.Hour), 1000)
	}
	got := kept(t, f)
	if len(got) != 4 || got["2026-11-23T21Z-0001.json"] != 1 {
		t.Errorf("kept are %v; want the last 4", got)
	}
}

func TestFilesGoOnAfterACrash(t *testing.T) {
	f := testFiles(t, 24*time.Hour, 1<<30)
	put(t, f, noon, 10)
	put(t, f, noon, 10)
	if err := os.WriteFile(filepath.Join(f.dir, temporary+"left"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := openFiles(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.at != f.at || again.size != f.size {
		t.Errorf("found %+v of %d bytes, want %+v of %d", again.at, again.size, f.at, f.size)
	}
	again.keep, again.maxBytes = f.keep, f.maxBytes
	put(t, again, noon, 10)
	if diff := cmp.Diff(map[string]int{"2026-11-23T12Z-0001.json": 3}, kept(t, again)); diff != "" {
		t.Error(diff)
	}
	left, err := filepath.Glob(filepath.Join(f.dir, temporary+"*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

// TestAFileOfSomebodyElseIsLeftAlone covers a part that was cut by hand or by a full disk.
func TestAFileOfSomebodyElseIsLeftAlone(t *testing.T) {
	f := testFiles(t, 24*time.Hour, 1<<30)
	name := filepath.Join(f.dir, "2026-11-23T12Z-0001.json")
	if err := os.WriteFile(name, []byte("{\"records\":["), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := openFiles(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	again.keep, again.maxBytes = f.keep, f.maxBytes
	put(t, again, noon, 10)
	if b, err := os.ReadFile(name); err != nil || string(b) != "{\"records\":[" {
		t.Errorf("%q %v", b, err)
	}
	if at := again.at; at != (position{"2026-11-23T12Z-0002.json", 1}) {
		t.Errorf("written to %+v", at)
	}
}

// TestPruneKeepsToTheLastSettings: also where no log is on any more, files go in time.
func TestPruneKeepsToTheLastSettings(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "default", "corp", "data")
	f, err := openFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	f.keep, f.maxBytes = 24*time.Hour, 1<<30
	put(t, f, noon, 10)
	put(t, f, noon.Add(time.Hour), 10)
	if err := os.WriteFile(filepath.Join(dir, stateFile), fmt.Appendf(nil, `{"retentionDays":1,"maxMiB":16}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after time.Duration
		want  int
	}{{24 * time.Hour, 2}, {24*time.Hour + 31*time.Minute, 1}, {25*time.Hour + 31*time.Minute, 0}} {
		if err := Prune(root, noon.Add(step.after)); err != nil {
			t.Fatal(err)
		}
		if got := kept(t, f); len(got) != step.want {
			t.Errorf("after %s: %v, want %d", step.after, got, step.want)
		}
	}
}
