// Package querysink writes the records of queries that have ended as JSON lines into a file,
// which is rotated by size.
//
// It owns the file's form and its rotation: FILE is written to, FILE.1 is the one before it.
// The service's query log is its only caller.
package querysink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Options of Open.
type Options struct {
	Path     string // Required
	MaxBytes int64  // of one file; default 100 MiB
	Files    int    // how many older ones are kept; default 5
}

// Sink is an open file. One goroutine uses it.
type Sink struct {
	opts Options
	file *os.File
	size int64
}

// Open opens the file, or makes it, for its owner alone: statements may hold what others
// must not see.
func Open(opts Options) (*Sink, error) {
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = 100 << 20
	}
	if opts.Files <= 0 {
		opts.Files = 5
	}
	s := &Sink{opts: opts}
	return s, s.open()
}

func (s *Sink) open() error {
	f, err := os.OpenFile(s.opts.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("query log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("query log: %w", err)
	}
	s.file, s.size = f, info.Size()
	return nil
}

// Write appends a line for each record.
func (s *Sink) Write(records []core.Query) error {
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	enc.SetEscapeHTML(false) // the lines are for people, too
	for _, q := range records {
		if err := enc.Encode(entryOf(q)); err != nil {
			return fmt.Errorf("query log: %s: %w", q.ID, err)
		}
	}
	if s.file == nil || s.size > 0 && s.size+int64(lines.Len()) > s.opts.MaxBytes {
		if err := s.rotate(); err != nil {
			return err
		}
	}
	n, err := s.file.Write(lines.Bytes())
	s.size += int64(n)
	if err != nil {
		return fmt.Errorf("query log: %w", err)
	}
	return nil
}

// rotate gives each file the next number and begins a new one. The oldest goes.
func (s *Sink) rotate() error {
	if s.file != nil {
		s.file.Close() // what was written is written
		s.file = nil
	}
	if s.size > 0 {
		for i := s.opts.Files; i > 0; i-- {
			err := os.Rename(s.name(i-1), s.name(i))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("query log: rotate: %w", err)
			}
		}
	}
	return s.open()
}

func (s *Sink) name(i int) string {
	if i == 0 {
		return s.opts.Path
	}
	return fmt.Sprintf("%s.%d", s.opts.Path, i)
}

// Close closes the file.
func (s *Sink) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// entry is one line.
type entry struct {
	ID           string             `json:"id"`
	Tenant       core.TenantID      `json:"tenant"`
	User         string             `json:"user"`
	Source       string             `json:"source"`
	Gateway      string             `json:"gateway,omitempty"`
	SQL          string             `json:"sql,omitempty"`
	SQLHash      string             `json:"sqlHash,omitempty"`
	Class        core.QueryClass    `json:"class"`
	State        core.QueryState    `json:"state"`
	StartedAt    time.Time          `json:"startedAt"`
	EndedAt      time.Time          `json:"endedAt"`
	Member       string             `json:"member,omitempty"`
	Address      netip.Addr         `json:"address,omitzero"`
	QueuedBehind int                `json:"queuedBehind"`
	Retried      string             `json:"retried,omitempty"`
	TotalMS      float64            `json:"totalMs"`
	PhasesMS     map[string]float64 `json:"phasesMs"`
	Rows         int64              `json:"rows"`
	Bytes        int64              `json:"bytes"`
	ErrorClass   string             `json:"errorClass,omitempty"`
	ErrorStep    string             `json:"errorStep,omitempty"`
	Error        string             `json:"error,omitempty"`
}

func entryOf(q core.Query) entry {
	e := entry{
		ID: q.ID, Tenant: q.Tenant, User: q.User, Source: q.Source, Gateway: q.Gateway, SQL: q.SQL, SQLHash: q.SQLHash,
		Class: q.Class, State: q.State, StartedAt: q.StartedAt.UTC(), EndedAt: q.EndedAt.UTC(), Member: q.Member, Address: q.Address,
		QueuedBehind: q.QueuedBehind, Retried: q.Retried, TotalMS: ms(q.EndedAt.Sub(q.StartedAt)), PhasesMS: map[string]float64{},
		Rows: q.Rows, Bytes: q.Bytes, ErrorClass: q.ErrorClass, ErrorStep: q.ErrorStep, Error: q.Error,
	}
	for _, p := range q.Phases {
		e.PhasesMS[p.Name] += ms(p.Duration)
	}
	return e
}

// ms is in milliseconds, to the microsecond.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
