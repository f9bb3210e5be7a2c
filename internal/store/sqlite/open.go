package sqlite

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
)

const (
	readers = 4
	// applicationID marks the file as Sluice's: "SLCE".
	applicationID = 0x534c4345
	// checkUpTo is the size in bytes up to which a file is checked for damage when it
	// is opened: well under a second.
	checkUpTo = 64 << 20
)

// Open opens the database, makes it if it is missing, and brings its schema up to date.
func Open(ctx context.Context, opts Options) (*Store, error) {
	path, err := filepath.Abs(opts.Path)
	if err != nil || opts.Path == "" {
		return nil, errs.New(errs.Invalid, "%q is not a path for a database", opts.Path)
	}
	s := &Store{path: path, log: cmp.Or(opts.Logger, slog.New(slog.DiscardHandler)), now: opts.Now}
	if s.now == nil {
		s.now = time.Now
	}
	size, err := s.prepareFile()
	if err != nil {
		return nil, err
	}
	if s.writer, err = sql.Open("sqlite", dsn(path, "synchronous(FULL)", "foreign_keys(1)", "temp_store(MEMORY)", "journal_size_limit(16777216)")); err != nil {
		return nil, s.wrap(err, "open "+path)
	}
	s.writer.SetMaxOpenConns(1)
	if s.reader, err = sql.Open("sqlite", dsn(path, "query_only(1)", "temp_store(MEMORY)")); err != nil {
		s.writer.Close()
		return nil, s.wrap(err, "open "+path)
	}
	s.reader.SetMaxOpenConns(readers)
	s.reader.SetMaxIdleConns(readers)
	if err := s.prepareSchema(ctx, size); err != nil {
		s.reader.Close()
		s.writer.Close()
		return nil, err
	}
	return s, nil
}

// dsn names the file as a URL: a path may contain what would end it otherwise.
func dsn(path string, pragmas ...string) string {
	q := url.Values{"_pragma": append([]string{"busy_timeout(5000)"}, pragmas...)}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// prepareFile makes the file, for its owner alone, and refuses one that is not a
// database before SQLite would write to it. It returns its size.
func (s *Store) prepareFile() (int64, error) {
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, s.openError(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, s.openError(err)
	}
	if !info.Mode().IsRegular() {
		return 0, errs.New(errs.Invalid, "%s is not a file", s.path)
	}
	magic := []byte("SQLite format 3\x00")
	head := make([]byte, len(magic))
	if n, err := io.ReadFull(f, head); n > 0 && !bytes.Equal(head, magic) {
		return 0, errs.New(errs.Invalid, "%s is not a database of Sluice", s.path).
			WithHint("name another path, or move the file away")
	} else if err != nil && !errors.Is(err, io.EOF) {
		return 0, s.openError(err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		s.log.Warn("the database was readable by others; its mode is now 0600", "path", s.path)
		if err := f.Chmod(0o600); err != nil {
			return 0, s.openError(err)
		}
	}
	return info.Size(), nil
}

func (s *Store) openError(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return errs.New(errs.StorageFull, "no room is left to make %s: %w", s.path, err).WithHint("free space on its file system")
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.Invalid, "the folder of %s does not exist: %w", s.path, err).WithHint("make the folder first")
	case errors.Is(err, fs.ErrPermission):
		return errs.New(errs.Denied, "%s can't be opened: %w", s.path, err)
	}
	return errs.New(errs.Internal, "%s can't be opened: %w", s.path, err)
}

func (s *Store) prepareSchema(ctx context.Context, size int64) error {
	if size > 0 {
		if err := s.checkFile(ctx, size); err != nil {
			return err
		}
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	var mode string
	if err := s.writer.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return s.wrap(err, "switch "+s.path+" to a write-ahead log")
	}
	if mode != "wal" {
		return errs.New(errs.Internal, "%s can't have a write-ahead log: its journal mode is %s", s.path, mode).
			WithHint("the data directory must be on a local file system")
	}
	return nil
}

// checkFile refuses a damaged file, and one of another program.
func (s *Store) checkFile(ctx context.Context, size int64) error {
	var id, tables int64
	if err := s.writer.QueryRowContext(ctx, "SELECT application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_application_id").Scan(&id, &tables); err != nil {
		return s.wrap(err, "open "+s.path)
	}
	if id != applicationID && (id != 0 || tables > 0) {
		return errs.New(errs.Invalid, "%s is a database of another program", s.path).
			WithHint("name another path, or move the file away")
	}
	if size > checkUpTo {
		return nil
	}
	var verdict string
	if err := s.writer.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return s.wrap(err, "check "+s.path)
	}
	if verdict != "ok" {
		return errs.New(errs.Internal, "the database %s is damaged: %s", s.path, verdict).
			WithHint("restore the file from a copy")
	}
	return nil
}
