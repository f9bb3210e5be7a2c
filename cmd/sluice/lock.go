package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// lockFile takes a lock that lasts as long as the process, so that two of them never
// work on one directory. The file tells who holds it.
func lockFile(path, what string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", what, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		return nil, errs.New(errs.Conflict, "%s is in use by another sluice process (PID %s)", what, strings.TrimSpace(string(holder))).
			WithHint("stop that one, or give this one directories and addresses of its own: --data-dir, --run-dir, --socket, --http, --flight, --hosts")
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid()) // for people only: the lock is what counts
	}
	return func() { f.Close() }, nil
}
