package flowlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A file is whole JSON at each moment: {"records":[ and one record per line.
const (
	head = "{\"records\":[\n"
	tail = "\n]}\n"
)

// partBytes is about how large one file gets; an hour that needs more has several. It
// bounds what a flush rewrites.
const partBytes = 4 << 20

const (
	hourForm  = "2006-01-02T15Z" // UTC
	extension = ".json"
	hidden    = "." // begins what is not a part of the log
)

// files are the log's files in one directory: one per hour, or several.
type files struct {
	dir      string
	keep     time.Duration
	maxBytes int64
	at       position
	size     int64
}

// position is how far the log is written.
type position struct {
	File    string `json:"file"`
	Records int    `json:"records"`
}

// openFiles finds where an earlier process stopped.
func openFiles(dir string) (*files, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	f := &files{dir: dir}
	f.tidy()
	names, err := f.names()
	if err != nil || len(names) == 0 {
		return f, err
	}
	last := names[len(names)-1]
	b, err := os.ReadFile(filepath.Join(dir, last))
	if err != nil {
		return nil, err
	}
	if _, err := readRecords(b); err != nil { // somebody else wrote: leave it alone
		f.at = position{File: last}
		f.size = partBytes
		return f, nil
	}
	f.at, f.size = position{last, bytes.Count(b, []byte("\n")) - 2}, int64(len(b))
	return f, nil
}

// tidy removes what a crash left.
func (f *files) tidy() {
	left, _ := filepath.Glob(filepath.Join(f.dir, temporary+"*"))
	for _, name := range left {
		_ = os.Remove(name)
	}
}

// names lists the log's files, the oldest first.
func (f *files) names() ([]string, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if name := e.Name(); !strings.HasPrefix(name, hidden) && strings.HasSuffix(name, extension) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// append adds records to the file of the hour. A reader sees the file before or after.
func (f *files) append(now time.Time, records []Record) error {
	var lines [][]byte
	for _, r := range records {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		lines = append(lines, b)
	}
	added := bytes.Join(lines, []byte(",\n"))
	name, fresh := f.next(now, int64(len(added)))
	var old []byte
	if !fresh {
		b, err := os.ReadFile(filepath.Join(f.dir, name))
		if whole := bytes.TrimSuffix(b, []byte(tail)); err == nil && len(whole) < len(b) {
			whole = append(whole, ",\n"...)
			old = whole
		} else { // it is gone or not ours any more
			f.size = partBytes
			name, fresh = f.next(now, int64(len(added)))
		}
	}
	if fresh {
		old = []byte(head)
	}
	text := slices.Concat(old, added, []byte(tail))
	if err := replaceFile(filepath.Join(f.dir, name), text); err != nil {
		return err
	}
	if fresh {
		f.at = position{File: name}
	}
	f.at.Records += len(records)
	f.size = int64(len(text))
	return f.prune(now)
}

// next names the file to write to, and says whether it is a new one. A clock that was set
// back opens no older file.
func (f *files) next(now time.Time, more int64) (name string, fresh bool) {
	hour := now.UTC().Format(hourForm)
	last, part := splitName(f.at.File)
	if last > hour {
		hour = last
	}
	if hour != last {
		part = 0
	} else if f.size+more <= partBytes {
		return f.at.File, false
	}
	return fmt.Sprintf("%s-%04d%s", hour, part+1, extension), true
}

func splitName(name string) (hour string, part int) {
	if len(name) < len(hourForm) {
		return "", 0
	}
	hour = name[:len(hourForm)]
	_, _ = fmt.Sscanf(name[len(hourForm):], "-%d", &part)
	return hour, part
}

// prune removes what is too old, and the oldest of what is too much.
func (f *files) prune(now time.Time) error {
	names, err := f.names()
	if err != nil {
		return err
	}
	var total int64
	sizes := map[string]int64{}
	for _, n := range names {
		if st, err := os.Stat(filepath.Join(f.dir, n)); err == nil {
			sizes[n] = st.Size()
			total += st.Size()
		}
	}
	var failed []error
	for _, n := range names {
		if n == f.at.File || !f.expired(n, now) && total <= f.maxBytes {
			continue
		}
		if err := os.Remove(filepath.Join(f.dir, n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			failed = append(failed, err)
			continue
		}
		total -= sizes[n]
	}
	return errors.Join(failed...)
}

// expired says that even the last entry of a file's hour is too old.
func (f *files) expired(name string, now time.Time) bool {
	hour, _ := splitName(name)
	began, err := time.Parse(hourForm, hour)
	return err == nil && now.Sub(began.Add(time.Hour)) >= f.keep
}

// since reads the records behind a position; at the zero one, all that there are.
func (f *files) since(p position) ([]Record, error) {
	names, err := f.names()
	if err != nil {
		return nil, err
	}
	var out []Record
	for _, n := range names {
		if n < p.File {
			continue
		}
		b, err := os.ReadFile(filepath.Join(f.dir, n))
		if err != nil {
			return nil, err
		}
		records, err := readRecords(b)
		if err != nil {
			continue // not written by this package
		}
		if n == p.File {
			records = records[min(p.Records, len(records)):]
		}
		out = append(out, records...)
	}
	return out, nil
}

func readRecords(b []byte) ([]Record, error) {
	var f struct {
		Records []Record `json:"records"`
	}
	err := json.Unmarshal(b, &f)
	return f.Records, err
}

// temporary begins the name of a file that is not complete.
const temporary = ".new-"

// replaceFile writes a file so that a crash of the process leaves the old or the new one.
func replaceFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), temporary+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o640), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
