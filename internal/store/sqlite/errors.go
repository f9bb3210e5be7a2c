package sqlite

import (
	"context"
	"errors"

	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// wrap gives an error of SQLite its class. Errors that have one keep it.
func (s *Store) wrap(err error, doing string) error {
	var known *errs.Error
	if errors.As(err, &known) {
		return known
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return errs.As(err)
	}
	switch code := codeOf(err); {
	case isFull(code):
		return errs.New(errs.StorageFull, "%s: no room is left for %s: %w", doing, s.path, err).
			WithHint("free space on the file system of %s; nothing of this change was kept", s.path)
	case code&0xff == lib.SQLITE_CORRUPT || code&0xff == lib.SQLITE_NOTADB:
		return errs.New(errs.Internal, "%s: the database %s is damaged: %w", doing, s.path, err).
			WithHint("stop the service and restore the file from a copy")
	case code == lib.SQLITE_CONSTRAINT_UNIQUE || code == lib.SQLITE_CONSTRAINT_PRIMARYKEY:
		return errs.New(errs.Conflict, "%s: %w", doing, err)
	case code&0xff == lib.SQLITE_BUSY:
		return errs.New(errs.Unavailable, "%s: another program holds %s: %w", doing, s.path, err)
	}
	return errs.New(errs.Internal, "%s: %w", doing, err)
}

func codeOf(err error) int {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// isFull covers the ways in which a full file system shows: in the file, in the
// write-ahead log, and in the index of that log.
func isFull(code int) bool {
	switch code {
	case lib.SQLITE_FULL, lib.SQLITE_IOERR_WRITE, lib.SQLITE_IOERR_SHMSIZE, lib.SQLITE_IOERR_FSYNC:
		return true
	}
	return false
}

// isConstraint reports an error that undoes its statement and leaves the transaction.
func isConstraint(err error) bool { return codeOf(err)&0xff == lib.SQLITE_CONSTRAINT }

func isUnique(err error) bool {
	code := codeOf(err)
	return code == lib.SQLITE_CONSTRAINT_UNIQUE || code == lib.SQLITE_CONSTRAINT_PRIMARYKEY
}

func isForeignKey(err error) bool { return codeOf(err) == lib.SQLITE_CONSTRAINT_FOREIGNKEY }
