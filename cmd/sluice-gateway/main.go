// Command sluice-gateway is what runs in a member: it confines itself, takes its boot
// document from file descriptor 3, dials the service through its host's relay, and
// runs queries on data sources until it is told to end.
//
// A host starts it; there is nothing to configure by hand.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sluice-gateway/sluice/internal/connector/all"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/gateway"
	"github.com/sluice-gateway/sluice/internal/gateway/confine"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// version is set by the linker.
var version = "dev"

// bootFD is where the host leaves the boot document.
const bootFD = 3

func main() { os.Exit(run(os.Args[1:])) }

// run returns the exit status: 0 after a drain.
func run(args []string) int {
	switch {
	case len(args) == 1 && args[0] == "--version":
		fmt.Println("sluice-gateway", version)
		return 0
	case len(args) > 0:
		fmt.Fprintln(os.Stderr, "error: sluice-gateway takes no argument but --version: a host starts it")
		return errs.Invalid.ExitStatus()
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := serve(log); err != nil {
		e := errs.As(err)
		log.Error("the member ends", "error", e.Message, "class", e.Class, "hint", e.Hint)
		return e.Class.ExitStatus()
	}
	return 0
}

func serve(log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if _, err := confine.Apply(confine.Options{CACerts: os.Getenv("SSL_CERT_FILE"), Logger: log}); err != nil {
		return err
	}
	boot, err := readBoot(log)
	if err != nil {
		return err
	}
	gateway.UseLimits(boot)
	return gateway.Run(ctx, gateway.Options{Boot: boot, Lookup: all.Lookup, Logger: log, Version: version})
}

// warmAfter is how long the boot document is waited for before the time is used: one that
// comes at once is not kept waiting.
const warmAfter = 20 * time.Millisecond

// readBoot reads the boot document and closes it for good. It may come long after the start.
func readBoot(log *slog.Logger) (memberapi.Boot, error) {
	warm := time.AfterFunc(warmAfter, func() {
		if err := gateway.Warm(); err != nil {
			log.Warn("what the first query needs could not be loaded in advance", "error", err)
		}
	})
	defer warm.Stop()
	f := os.NewFile(bootFD, "boot")
	defer f.Close()
	return gateway.ReadBoot(f)
}
