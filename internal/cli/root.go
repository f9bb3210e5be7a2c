// Package cli is the command line's client side: the commands that speak to a service
// and what they print.
//
// It owns arguments, output and exit statuses. What commands do is the service's; the
// commands that run a service or a host are in cmd/sluice, its only caller.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/config"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// Options are a command's streams.
type Options struct {
	In  io.Reader // Required
	Out io.Writer // Required: rows and results alone
	Err io.Writer // Required: everything else
}

// app is what the commands share.
type app struct{ Options }

// Root returns the root command with every client command.
func Root(version string, opts Options) *cobra.Command {
	a := &app{Options: opts}
	root := &cobra.Command{
		Use:           "sluice",
		Short:         "A virtual-network data gateway: query private data sources without an open port",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(opts.Out)
	root.SetErr(opts.Err)
	root.SetIn(opts.In)
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(a.applyCommand(), a.getCommand(), a.deleteCommand(), a.queryCommand(),
		a.gatewayCommand(), a.dataSourceCommand(), a.checkCommand(), a.queriesCommand(), a.tokenCommand())
	return root
}

// Execute runs the command line and returns the exit status; an error is printed.
func Execute(ctx context.Context, root *cobra.Command) int {
	nameArguments(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	return report(ctx, root.ErrOrStderr(), err)
}

// report prints an error as "error: …" and "hint: …" and returns its exit status.
func report(ctx context.Context, w io.Writer, err error) int {
	var many config.Errors
	if errors.As(err, &many) {
		for _, e := range many {
			printError(w, e.Error(), e.Hint)
		}
		return errs.ClassOf(err).ExitStatus()
	}
	var one *errs.Error
	if !errors.As(err, &one) {
		if ctx.Err() != nil {
			printError(w, "interrupted", "")
			return 1
		}
		if strings.HasPrefix(err.Error(), "unknown command") {
			one = errs.New(errs.Invalid, "%w", err).WithHint("sluice --help")
		} else {
			one = errs.As(err)
		}
	}
	message := err.Error()
	if one.Step != "" {
		message = one.Step + ": " + message
	}
	if one.SQLState != "" {
		message += " (SQLSTATE " + one.SQLState
		if one.Position > 0 {
			message += fmt.Sprintf(", at character %d", one.Position)
		}
		message += ")"
	}
	printError(w, message, one.Hint)
	return one.Class.ExitStatus()
}

func printError(w io.Writer, message, hint string) {
	fmt.Fprintf(w, "error: %s\n", printable(message))
	if hint != "" {
		fmt.Fprintf(w, "hint: %s\n", printable(hint))
	}
}

// client makes a client from the environment.
func (a *app) client() (*client.Client, error) { return client.New(client.FromEnv()) }

// isTerminal reports whether a stream is one, and how wide it is.
func isTerminal(w any) (width int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, true
	}
	return width, true
}
