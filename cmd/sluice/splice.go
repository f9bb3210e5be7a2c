package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/splice"
)

// spliceCommand is the process that a host starts to join connections, and that
// outlives it. Nobody types it.
func spliceCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "splice VERSION SOCKET",
		Short:  "Join connections for a host, which starts this itself",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			host := os.NewFile(splice.HostFD, "host")
			if info, err := host.Stat(); err != nil || info.Mode()&fs.ModeSocket == 0 {
				return errs.New(errs.Invalid, "this command is a host's to start: it needs the host's socket as descriptor %d", splice.HostFD).
					WithHint("\"sluice host\" and \"sluice up\" start it")
			}
			context.AfterFunc(cmd.Context(), func() { os.Exit(0) })
			runtime.LockOSThread()
			return splice.Serve(splice.ServeOptions{
				Host: host, Version: args[0], Path: args[1], Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
			})
		},
	}
}

// spliceDir is where the splicers of a host have their sockets.
func (f *hostFlags) spliceDir() string { return filepath.Join(f.runDir, "splice") }

// splicer is the host's hold on its splicers. It starts none before one is needed.
func (f *hostFlags) splicer(log *slog.Logger) (*splice.Splicer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("this program's path: %w", err)
	}
	info, err := os.Stat(self)
	if err != nil {
		return nil, fmt.Errorf("this program: %w", err)
	}
	// A program that was replaced is another version, whatever it calls itself.
	program := strconv.FormatInt(info.Size(), 36) + "-" + strconv.FormatInt(info.ModTime().UnixNano(), 36)
	start := splice.Command(self, filepath.Join(f.spliceDir(), "log"), "splice", program)
	return splice.New(splice.Options{
		Dir: f.spliceDir(), Version: program, Logger: log,
		Start: func(host *os.File, path string) error {
			if err := os.MkdirAll(f.spliceDir(), 0o700); err != nil {
				return err
			}
			return start(host, path)
		},
	}), nil
}

// splicerItems lists what the splicers do, for a host's status.
func splicerItems(ctx context.Context, s *splice.Splicer) ([]hostnet.Item, error) {
	pairs, err := s.Pairs(ctx)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for _, p := range pairs {
		kind, _, _ := strings.Cut(p.Label, "/")
		counts[kind]++
	}
	var items []hostnet.Item
	for _, pid := range s.Processes() {
		why := fmt.Sprintf("joins connections: %d of members to the service, %d of private endpoints", counts["tunnel"], counts["endpoint"])
		items = append(items, hostnet.Item{Type: "process", Name: strconv.Itoa(pid), Why: why})
	}
	return items, nil
}

// endSplicers ends what a host started, and every connection with it.
func endSplicers(f hostFlags, log *slog.Logger) error {
	if _, err := os.Stat(f.spliceDir()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	s, err := f.splicer(log)
	if err != nil {
		return err
	}
	return s.Quit()
}
