package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"
	_ "time/tzdata" // for schedules, where the machine has none

	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/fleet"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/ingress"
	"github.com/sluice-gateway/sluice/internal/seal"
	"github.com/sluice-gateway/sluice/internal/service"
	"github.com/sluice-gateway/sluice/internal/service/flightsql"
	"github.com/sluice-gateway/sluice/internal/service/httpapi"
	"github.com/sluice-gateway/sluice/internal/service/signin"
	"github.com/sluice-gateway/sluice/internal/store/sqlite"
	"github.com/sluice-gateway/sluice/internal/tunnel"
)

// serviceFlags configure a service.
type serviceFlags struct {
	dataDir  string
	http     string
	flight   string
	hosts    string
	socket   string
	tlsCert  string
	tlsKey   string
	insecure bool
	rest     time.Duration
	lease    time.Duration
	shrink   time.Duration
	audit    time.Duration
	queries  queryLogFlags
	log      logFlags
}

func (f *serviceFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.dataDir, "data-dir", "/var/lib/sluice", "where the service keeps its state and keys")
	fl.StringVar(&f.http, "http", "127.0.0.1:8480", "address of the HTTP API")
	fl.StringVar(&f.flight, "flight", "127.0.0.1:8481", "address of Flight SQL")
	fl.StringVar(&f.hosts, "hosts", "127.0.0.1:8482", "address that hosts and members dial (TLS)")
	fl.StringVar(&f.socket, "socket", "/run/sluice.sock", "Unix socket of the administrator")
	fl.StringVar(&f.tlsCert, "tls-cert", "", "certificate for the HTTP API and Flight SQL, PEM")
	fl.StringVar(&f.tlsKey, "tls-key", "", "its key, PEM")
	fl.BoolVar(&f.insecure, "insecure", false, "allow --http and --flight on other machines' networks without TLS")
	fl.DurationVar(&f.rest, "quarantine", 30*time.Second, "how long an address rests after its member is confirmed gone, before another may have it")
	fl.DurationVar(&f.lease, "lease-time", 2*time.Minute, "for how long a host's report confirms a lease: one whose host is silent for longer is shown as expired, and kept")
	fl.DurationVar(&f.shrink, "shrink-after", 5*time.Minute, "for how long fewer members must have been enough before a gateway gives one up")
	fl.DurationVar(&f.audit, "keep-audit", service.DefaultKeepAudit, "how long entries of the audit log are kept")
	f.queries.add(cmd)
	f.log.add(cmd)
}

func serviceCommand() *cobra.Command {
	var f serviceFlags
	cmd := &cobra.Command{
		Use:   "service",
		Short: "Run the service: resources, queries, placement",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := f.log.logger(os.Stderr)
			if err != nil {
				return err
			}
			s, err := openService(cmd.Context(), f, log)
			if err != nil {
				return err
			}
			defer s.close()
			return s.run(cmd.Context())
		},
	}
	f.add(cmd)
	return cmd
}

// runningService is a service with its listeners open.
type runningService struct {
	flags serviceFlags
	log   *slog.Logger
	ca    *identity.CA
	token service.HostToken
	svc   *service.Service
	ingr  *ingress.Server
	http  *httpapi.Server

	flight  *flightsql.Server
	flightL net.Listener
	hostsL  net.Listener
	closers closers
}

// check tells what is wrong with the durations, before anything is begun.
func (f *serviceFlags) check() error {
	for _, d := range []struct {
		flag string
		is   time.Duration
	}{
		{"--quarantine", f.rest}, {"--lease-time", f.lease}, {"--shrink-after", f.shrink}, {"--keep-audit", f.audit}, {"--keep-queries", f.queries.keep},
	} {
		if d.is <= 0 {
			return errs.New(errs.Invalid, "%s %s is not a time that passes", d.flag, d.is).WithHint("a duration above 0, such as 30s")
		}
	}
	return nil
}

// openService opens state and listeners; nothing is served yet.
func openService(ctx context.Context, f serviceFlags, log *slog.Logger) (_ *runningService, err error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	s := &runningService{flags: f, log: log}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.openState(ctx); err != nil {
		return nil, err
	}
	if err := s.listen(); err != nil {
		return nil, err
	}
	return s, s.announce(ctx)
}

// openState opens the data directory and makes the service on it.
func (s *runningService) openState(ctx context.Context) error {
	dir := s.flags.dataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	release, err := lockFile(filepath.Join(dir, "lock"), "data directory "+dir)
	if err != nil {
		return err
	}
	s.closers.add(release)
	sealer, err := seal.OpenKeyFile(filepath.Join(dir, "seal.key"))
	if err != nil {
		return err
	}
	if s.ca, err = identity.OpenCA(dir, identity.CAOptions{}); err != nil {
		return err
	}
	if s.token, err = service.OpenHostToken(filepath.Join(dir, "host.token")); err != nil {
		return err
	}
	st, err := sqlite.Open(ctx, sqlite.Options{Path: filepath.Join(dir, "sluice.db"), Logger: s.log})
	if err != nil {
		return err
	}
	s.closers.add(func() { st.Close() })

	var fl *fleet.Fleet
	hub := tunnel.NewHub(tunnel.HubOptions{
		OnUp:      func(id string, generation int64) { fl.TunnelUp(id, generation) },
		OnDown:    func(id string, generation int64, reason error) { fl.TunnelDown(id, generation, reason) },
		OnSuspect: func(id string, generation int64, silent bool) { fl.TunnelSilent(id, generation, silent) },
		Logger:    s.log,
	})
	s.closers.add(hub.Close)
	fl, err = fleet.New(ctx, fleet.Options{
		Store: st, Disconnect: hub.Disconnect, Quarantine: s.flags.rest, LeaseTime: s.flags.lease, ShrinkAfter: s.flags.shrink, Logger: s.log,
	})
	if err != nil {
		return err
	}
	s.closers.add(fl.Close)
	sink, err := s.flags.queries.open(&s.closers)
	if err != nil {
		return err
	}
	traced, err := openTracer(ctx, s.flags.queries, s.log, &s.closers)
	if err != nil {
		return err
	}
	s.svc, err = service.New(ctx, service.Options{
		Trace:       traced,
		KeepQueries: s.flags.queries.keep, RecordSQL: service.RecordSQL(s.flags.queries.sql), QuerySink: sink,
		Store: st, Sealer: sealer, Tunnels: hub, Fleet: fl, Logger: s.log, HostToken: s.token, KeepAudit: s.flags.audit,
	})
	if err != nil {
		return err
	}
	s.closers.add(s.svc.Close)
	s.ingr, err = ingress.New(ingress.Options{
		CA: s.ca, Join: s.svc.Join, Authorize: s.svc.Authorize, Hub: hub, Logger: s.log,
		Host: func(ctx context.Context, subj identity.Subject, conn net.Conn) {
			if err := fl.ServeHost(ctx, subj.Name, conn); err != nil {
				s.log.Warn("host connection ended", "host", subj.Name, "error", err)
			}
		},
	})
	return err
}

// listen opens every listener, so that a taken address is told before anything runs.
func (s *runningService) listen() error {
	certs, err := s.tlsConfig()
	if err != nil {
		return err
	}
	gate := signin.New(signin.Options{Authenticate: s.svc.Authenticate})
	s.http, err = httpapi.Listen(httpapi.ServerOptions{
		Handler: httpapi.New(httpapi.Options{Frontend: s.svc, Gate: gate, Metrics: s.svc.Metrics(), Logger: s.log}),
		Address: s.flags.http, Socket: s.flags.socket, TLS: certs, AllowInsecure: s.flags.insecure, Logger: s.log,
	})
	if err != nil {
		return err
	}
	s.closers.add(func() { s.http.Close() })
	s.flight, err = flightsql.New(flightsql.Options{
		Frontend: s.svc, Gate: gate, Version: version, TLS: certs, AllowInsecure: s.flags.insecure, Logger: s.log,
	})
	if err != nil {
		return err
	}
	if s.flightL, err = s.flight.Listen(s.flags.flight); err != nil {
		return err
	}
	s.closers.add(func() { s.flightL.Close() })
	if s.hostsL, err = listenTCP("--hosts", s.flags.hosts); err != nil {
		return err
	}
	s.closers.add(func() { s.hostsL.Close() })
	return nil
}

func (s *runningService) tlsConfig() (*tls.Config, error) {
	if s.flags.tlsCert == "" && s.flags.tlsKey == "" {
		return nil, nil
	}
	return httpapi.LoadTLS(s.flags.tlsCert, s.flags.tlsKey)
}

// announce shows the first token, once, and where the service answers.
func (s *runningService) announce(ctx context.Context) error {
	token, err := s.svc.FirstToken(ctx)
	if err != nil {
		return err
	}
	if !token.IsZero() {
		sayf(os.Stderr, "administrator's token, shown this once (SLUICE_TOKEN for clients over TCP):\n\n    %s\n", token.Reveal())
	}
	s.log.Info("service ready", "http", s.http.Addr(), "flight", s.flightL.Addr(), "hosts", s.hostsL.Addr(), "socket", s.flags.socket, "data", s.flags.dataDir)
	return nil
}

// run serves until ctx ends or a listener fails. The hosts address may have more listeners.
func (s *runningService) run(ctx context.Context, hosts ...net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	serve := []func(context.Context) error{
		s.http.Serve,
		func(ctx context.Context) error { return s.flight.Serve(ctx, s.flightL) },
	}
	for _, l := range append(hosts, s.hostsL) {
		serve = append(serve, func(ctx context.Context) error { return s.ingr.Serve(ctx, l) })
	}
	done := make(chan error, len(serve))
	for _, f := range serve {
		go func() { done <- f(ctx) }()
	}
	var out error
	for range serve {
		err := <-done
		if out == nil && err != nil && !errors.Is(err, context.Canceled) {
			out = err
		}
		cancel()
	}
	return out
}

func (s *runningService) close() { s.closers.close() }

// listenTCP opens an address, waiting a moment for one that an ended process frees.
func listenTCP(flag, address string) (net.Listener, error) {
	var err error
	for range 10 {
		var l net.Listener
		if l, err = net.Listen("tcp", address); err == nil {
			return l, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, listenError(flag, address, err)
}
