package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/client"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

func (a *app) gatewayCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "gateway", Short: "Wake, pause or restart a gateway"}
	for _, act := range []struct{ verb, done, short string }{
		{"wake", "running", "Start a member, if none runs, and wait until it is ready"},
		{"pause", "paused", "Let queries finish, then tear the members down and wait until that is confirmed"},
		{"restart", "running", "Pause, then wake"},
	} {
		var timeout time.Duration
		sub := &cobra.Command{
			Use: act.verb + " NAME", Short: act.short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeNames("gateways"),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				defer c.Close()
				ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
				defer cancel()
				begun := time.Now()
				if err := c.Gateway(ctx, act.verb, args[0]); err != nil {
					return waited(err, act.verb, args[0], timeout)
				}
				_, err = fmt.Fprintf(a.Out, "Gateway/%s %s (%s)\n", args[0], act.done, milliseconds(time.Since(begun)))
				return err
			},
		}
		sub.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait")
		cmd.AddCommand(sub)
	}
	return requireSub(cmd)
}

// waited says what was waited for in vain, if it was the caller's own time that was up.
func waited(err error, verb, name string, timeout time.Duration) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return errs.New(errs.Timeout, "gateway %s: %s was not done within %s", name, verb, timeout).
		WithHint("\"sluice get gateway %s\" shows how far it is; --timeout waits longer", name)
}

// requireSub makes a command group refuse an unknown or missing subcommand.
func requireSub(cmd *cobra.Command) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		return cmd.Help()
	}
	return cmd
}

func (a *app) dataSourceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "datasource", Short: "Test a data source"}
	cmd.AddCommand(&cobra.Command{
		Use: "test NAME", Short: "Resolve, connect, TLS, sign in, run a trivial query: each step with its time",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeNames("datasources"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.testDataSource(cmd.Context(), args[0]) },
	})
	return requireSub(cmd)
}

func (a *app) testDataSource(ctx context.Context, name string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	var out client.TestResult
	if err := c.Post(ctx, "/v1/datasources/"+url.PathEscape(name)+"/test", struct{}{}, &out); err != nil {
		return err
	}
	for _, s := range out.Steps {
		verdict := "ok"
		if s.Error != "" {
			verdict = "failed"
		}
		fmt.Fprintf(a.Out, "%-8s %10s  %-6s  %s\n", s.Name, milliseconds(s.Duration), verdict, s.Detail)
	}
	if n := len(out.Steps); n > 0 && out.Steps[n-1].Error != "" {
		last := out.Steps[n-1]
		return (&errs.Error{Class: errs.Source, Message: last.Error, Hint: last.Hint, SQLState: last.SQLState}).WithStep(last.Name)
	}
	return nil
}

func splitHostPort(to string) (string, uint16, error) {
	host, portText, err := net.SplitHostPort(to)
	if err != nil {
		return "", 0, errs.New(errs.Invalid, "--to %q is not HOST:PORT", to).WithHint("such as db.corp.internal:5432 or 10.20.1.4:443")
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return "", 0, errs.New(errs.Invalid, "--to %q: %q is not a port", to, portText)
	}
	return host, uint16(port), nil
}

func protocolOf(word string) core.Protocol {
	switch word {
	case "tcp", "TCP":
		return core.ProtocolTCP
	case "udp", "UDP":
		return core.ProtocolUDP
	case "icmp", "ICMP":
		return core.ProtocolICMP
	case "esp", "ESP":
		return core.ProtocolESP
	case "ah", "AH":
		return core.ProtocolAH
	}
	return core.Protocol(word)
}

func orText(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
