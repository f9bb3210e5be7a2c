// Package confine takes from the running process what a member never needs.
//
// It owns the process's own confinement: no new privileges, no core dumps, a Landlock
// domain (no files but the CA bundle; no TCP bind, from Linux 6.7 on) and a seccomp filter (an allow-list
// of what a Go program needs that only dials out). It does not own namespaces,
// capabilities or limits; the sandbox's runtime sets those from outside.
// sluice-gateway calls Apply once, first thing, before it opens anything.
package confine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// Options of Apply.
type Options struct {
	// CACerts is the one file that stays readable. Optional: none does.
	CACerts string
	// AllowDegraded turns a layer that this kernel lacks into a warning. Default: an error.
	AllowDegraded bool
	Logger        *slog.Logger // Default: none
}

// Report says which layers took effect.
type Report struct {
	NoNewPrivs  bool
	NotDumpable bool
	LandlockABI int // 0: no Landlock; else the kernel's version, of which at most 7 is used
	Seccomp     bool
	Missing     []string // the layers that are not in force, and why
	Took        time.Duration
}

// LogValue implements slog.LogValuer.
func (r Report) LogValue() slog.Value {
	return slog.GroupValue(slog.Bool("noNewPrivs", r.NoNewPrivs), slog.Bool("notDumpable", r.NotDumpable),
		slog.Int("landlockABI", r.LandlockABI), slog.Bool("seccomp", r.Seccomp),
		slog.Any("missing", r.Missing), slog.Duration("took", r.Took))
}

// Apply confines the whole process, for good. Files and connections that are open
// already stay usable. It returns an error if a layer could not be put in force, unless
// that is allowed; the layers that could be are in force all the same.
func Apply(o Options) (Report, error) {
	began := time.Now()
	// no_new_privs belongs to a thread; the filter below hands it on to the others.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var r Report
	var failed []error
	for _, l := range layers(o, &r) {
		if err := l.apply(); err != nil {
			err = fmt.Errorf("%s: %w", l.name, err)
			failed = append(failed, err)
			r.Missing = append(r.Missing, err.Error())
		}
	}
	r.Took = time.Since(began)
	report(o.Logger, r)
	if len(failed) > 0 && !o.AllowDegraded {
		return r, errs.New(errs.Internal, "the member can't confine itself: %w", errors.Join(failed...)).
			WithHint("members need Linux 5.13 or later with Landlock enabled (lsm=landlock,…) and seccomp filters")
	}
	return r, nil
}

type layer struct {
	name  string
	apply func() error
}

// layers lists them in the order that works: Landlock needs system calls that the
// filter denies, and both need no_new_privs.
func layers(o Options, r *Report) []layer {
	return []layer{
		{"no new privileges", func() error { return mark(&r.NoNewPrivs, setNoNewPrivs()) }},
		{"no core dumps", func() error { return mark(&r.NotDumpable, setNotDumpable()) }},
		{"Landlock", func() (err error) { r.LandlockABI, err = restrictFiles(o.CACerts); return err }},
		{"seccomp", func() error { return mark(&r.Seccomp, installFilter()) }},
	}
}

func mark(done *bool, err error) error {
	*done = err == nil
	return err
}

func setNoNewPrivs() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }

// setNotDumpable also keeps other processes of the same user out of /proc/PID/mem.
func setNotDumpable() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

func report(log *slog.Logger, r Report) {
	if log == nil {
		return
	}
	level := slog.LevelInfo
	if len(r.Missing) > 0 {
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, "confined", "layers", r)
}
