package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/tunnel"
)

// Options are the options of Run.
type Options struct {
	Boot   memberapi.Boot // Required
	Lookup Lookup         // Required: the connectors
	Logger *slog.Logger   // Required
	// Version of the program, for the service's log.
	Version string
	// DrainTimeout bounds how long requests in flight may go on after ctx ended. Default 30 s.
	DrainTimeout time.Duration
}

// Run is a member's life: it joins, keeps its tunnel up and answers the service's
// requests until ctx ends, then finishes what is in flight, and returns nil. It returns an
// error if the service does not take the member, or stops to.
func Run(ctx context.Context, opts Options) error {
	if opts.DrainTimeout <= 0 {
		opts.DrainTimeout = 30 * time.Second
	}
	log := opts.Logger.With("member", opts.Boot.Member, "generation", opts.Boot.Generation)
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp4", opts.Boot.Relay)
	}
	keeper, err := identity.New(identity.KeeperOptions{
		Role: memberapi.RoleMember, Name: opts.Boot.Member, Token: core.NewSecret(opts.Boot.JoinToken),
		ServiceName: opts.Boot.ServiceName, CAPEM: []byte(opts.Boot.ServiceCA), Dial: dial, Logger: log,
	})
	if err != nil {
		return err
	}
	server := NewServer(ServerOptions{Lookup: opts.Lookup, Resolve: NewResolver(opts.Boot.DNSServers).Resolve, Logger: log})
	agent, err := tunnel.NewAgent(tunnel.AgentOptions{
		Dial: dial, TLS: keeper.TLSConfig, Handler: server, Parked: opts.Boot.Parked, Version: opts.Version, Logger: log,
		OnState: func(s tunnel.State) { log.Info("tunnel", "state", string(s)) },
	})
	if err != nil {
		return err
	}
	start := time.Now()
	if err := keeper.Join(ctx); err != nil {
		return errors.Join(err, server.Close())
	}
	log.Info("joined", "took", time.Since(start))
	err = live(ctx, agent, keeper, opts.DrainTimeout)
	log.Info("leaving", "peakMemory", peakMemory())
	return errors.Join(err, server.Close())
}

// live runs the tunnel and the identity until one of them gives up or a drain is over.
// The end of ctx begins the drain; what is then not over in time is broken off.
func live(ctx context.Context, agent *tunnel.Agent, keeper *identity.Keeper, drain time.Duration) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var tasks sync.WaitGroup
	defer tasks.Wait()

	var lost error
	tasks.Go(func() {
		if lost = keeper.Run(work); lost != nil {
			cancel()
		}
	})
	tasks.Go(func() {
		select {
		case <-ctx.Done():
		case <-work.Done():
			return
		}
		agent.Drain()
		select {
		case <-time.After(drain):
			cancel()
		case <-work.Done():
		}
	})
	err := agent.Run(work)
	cancel()
	tasks.Wait()
	return errors.Join(lost, err)
}
