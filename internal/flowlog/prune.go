package flowlog

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// Prune removes below dir what is older, and more, than its network security group last
// allowed, also where no log is on any more.
func Prune(dir string, now time.Time) error {
	states, err := filepath.Glob(filepath.Join(dir, "*", "*", "*", stateFile))
	if err != nil {
		return err
	}
	var failed []error
	for _, state := range states {
		failed = append(failed, pruneOne(state, now))
	}
	return errors.Join(failed...)
}

func pruneOne(state string, now time.Time) error {
	b, err := os.ReadFile(state)
	if err != nil {
		return err
	}
	var c checkpoint
	if err := json.Unmarshal(b, &c); err != nil || c.RetentionDays == 0 {
		return nil // the log, if it is on, writes another
	}
	f := &files{dir: filepath.Dir(state), keep: time.Duration(c.RetentionDays) * 24 * time.Hour, maxBytes: int64(c.MaxMiB) << 20}
	names, err := f.names()
	if err != nil || len(names) == 0 {
		return err
	}
	if newest := names[len(names)-1]; !f.expired(newest, now) {
		f.at.File = newest // it may be written to just now
	}
	return f.prune(now)
}
