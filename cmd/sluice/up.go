package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/internal/tunnel/relay"
)

func upCommand() *cobra.Command {
	var sf serviceFlags
	var hf hostFlags
	var ephemeral bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run service and host together on this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return up(cmd.Context(), sf, hf, ephemeral)
		},
	}
	sf.add(cmd)
	hf.add(cmd)
	cmd.Flags().BoolVar(&ephemeral, "cleanup", false, "at the end, remove members and networks from the machine; else members go on running")
	return cmd
}

// up runs a service and a host that dials it, as two machines would, but for the members'
// connections, which the host hands to the service as they are.
func up(ctx context.Context, sf serviceFlags, hf hostFlags, ephemeral bool) error {
	log, err := sf.log.logger(os.Stderr)
	if err != nil {
		return err
	}
	release, err := openHost(hf)
	if err != nil {
		return err
	}
	defer release()
	s, err := openService(ctx, sf, log)
	if err != nil {
		return err
	}
	defer s.close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := link{address: s.hostsL.Addr().String(), ca: s.ca.CertPEM(), token: s.token.Secret(), handover: relay.NewHandover(s.hostsL.Addr())}
	served := make(chan error, 1)
	go func() {
		served <- s.run(ctx, l.handover)
		cancel()
	}()
	err = runHost(ctx, hf, l, log)
	cancel()
	err = first(err, <-served)
	if ephemeral {
		err = first(err, cleanUp(context.WithoutCancel(ctx), hf, log))
	}
	return err
}
