// Command sluice is the service, the host and the command line of Sluice.
//
// It turns flags into configurations and wires the packages of internal/ together by
// hand; it holds no logic of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/internal/cli"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// version is set at build time.
var version = "dev"

func main() { os.Exit(run()) }

// run returns the exit status.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := cli.Root(version, cli.Options{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	root.AddCommand(upCommand(), serviceCommand(), hostCommand(), spliceCommand())
	return cli.Execute(ctx, root)
}

// logFlags are the flags of every command that goes on running.
type logFlags struct {
	level  string
	format string
}

func (f *logFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&f.format, "log-format", "text", "text or json")
}

func (f *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, errs.New(errs.Invalid, "--log-level %q is not debug, info, warn or error", f.level)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch f.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, errs.New(errs.Invalid, "--log-format %q is not text or json", f.format)
}

// closers are closed in reverse order.
type closers []func()

func (c *closers) add(f func()) { *c = append(*c, f) }

func (c *closers) close() {
	for i := len(*c) - 1; i >= 0; i-- {
		(*c)[i]()
	}
}

// first returns the first error that is not a context's end.
func first(candidates ...error) error {
	for _, err := range candidates {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return nil
}

func sayf(w io.Writer, format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
