package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/querysink"
	"github.com/sluice-gateway/sluice/internal/service"
	"github.com/sluice-gateway/sluice/internal/tracing"
)

// queryLogFlags say what is kept of queries, where and for how long.
type queryLogFlags struct {
	sql    string
	keep   time.Duration
	file   string
	maxMiB int64
	files  int
	traced bool
}

func (f *queryLogFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.sql, "query-sql", string(service.RecordFull), "what query records keep of statements: full, hash or none")
	fl.DurationVar(&f.keep, "keep-queries", 30*24*time.Hour, "how long query records are kept")
	fl.StringVar(&f.file, "query-log", "", "file that also gets the records of queries that have ended, as JSON lines")
	fl.Int64Var(&f.maxMiB, "query-log-max-mib", 100, "size at which that file is rotated")
	fl.IntVar(&f.files, "query-log-files", 5, "how many rotated files are kept: FILE.1 is the newest")
	fl.BoolVar(&f.traced, "trace-sql", false, "spans, if the environment names a collector, hold statements as --query-sql keeps them, and data sources' errors, which may quote them")
}

// open checks the flags and opens the file, if there is one.
func (f *queryLogFlags) open(c *closers) (func([]core.Query) error, error) {
	switch service.RecordSQL(f.sql) {
	case service.RecordFull, service.RecordHash, service.RecordNone:
	default:
		return nil, errs.New(errs.Invalid, "--query-sql %s is not full, hash or none", f.sql)
	}
	if f.file == "" {
		return nil, nil
	}
	if f.maxMiB < 1 || f.files < 1 {
		return nil, errs.New(errs.Invalid, "--query-log-max-mib %d and --query-log-files %d must be 1 or more", f.maxMiB, f.files)
	}
	sink, err := querysink.Open(querysink.Options{Path: f.file, MaxBytes: f.maxMiB << 20, Files: f.files})
	if err != nil {
		return nil, errs.New(errs.Invalid, "--query-log %s: %w", f.file, err)
	}
	c.add(func() { _ = sink.Close() })
	return sink.Write, nil
}

// traceFlush bounds how long the end of a process waits for a collector of traces.
const traceFlush = 5 * time.Second

// openTracer returns what tells a collector of queries, or nil if the environment names none.
func openTracer(ctx context.Context, f queryLogFlags, log *slog.Logger, c *closers) (func(core.Query, string), error) {
	t, err := tracing.Open(ctx, tracing.Options{Version: version, Statements: f.traced, Logger: log})
	if err != nil || t == nil {
		return nil, err
	}
	c.add(func() {
		ctx, cancel := context.WithTimeout(context.Background(), traceFlush)
		defer cancel()
		_ = t.Close(ctx) // what a collector does not take is lost: nobody waits for it
	})
	return t.Ended, nil
}
