package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"github.com/sluice-gateway/sluice/internal/cli"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/host"
	"github.com/sluice-gateway/sluice/internal/hostnet/linux"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/sandbox/oci"
	"github.com/sluice-gateway/sluice/internal/splice"
	"github.com/sluice-gateway/sluice/internal/tunnel/relay"
)

// hostFlags configure what a host does to its machine.
type hostFlags struct {
	name    string
	runDir  string
	program string
	runtime string
	pool    int
}

func (f *hostFlags) add(cmd *cobra.Command) {
	name, _ := os.Hostname()
	cmd.Flags().StringVar(&f.name, "name", name, "this host's name, unique among the service's hosts")
	cmd.Flags().IntVar(&f.pool, "pool", 1, "how many members are started in advance, before it is known whose they will be: a gateway wakes faster; 0 for none")
	f.addMachine(cmd)
}

// addMachine adds the flags of every command that works on the machine.
func (f *hostFlags) addMachine(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.program, "gateway-program", beside("sluice-gateway"), "the static program that members run; when the file is replaced, they are replaced one after the other")
	fl.StringVar(&f.runtime, "runtime", "runc", "OCI runtime that runs members")
	fl.StringVar(&f.runDir, "run-dir", "/run/sluice", "where this host keeps what lasts until a reboot; what it makes on the machine is named after it")
	cmd.PreRunE = func(*cobra.Command, []string) (err error) {
		f.runDir, err = filepath.Abs(f.runDir) // the runtime and its containers work elsewhere
		return err
	}
}

// check tells what is wrong with the flags, before anything is begun.
func (f *hostFlags) check() error {
	if err := identity.CheckName(f.name); err != nil {
		return errs.New(errs.Invalid, "--name: %w", err)
	}
	if f.pool < 0 {
		return errs.New(errs.Invalid, "--pool %d is not a number of members", f.pool).WithHint("0 starts none in advance")
	}
	info, err := os.Stat(f.program)
	if err != nil {
		return errs.New(errs.Invalid, "the members' program can't be found: %w", err).WithHint("\"make build\" makes it; --gateway-program says where it is")
	}
	if !info.Mode().IsRegular() {
		return errs.New(errs.Invalid, "--gateway-program %s is not a file", f.program).WithHint("\"make build\" makes bin/sluice-gateway")
	}
	return nil
}

// beside returns the path of a program in the directory of this one.
func beside(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(self), name)
}

// instance tells apart the installations on one machine: every name in the kernel
// begins with it.
func (f *hostFlags) instance() (string, error) {
	dir, err := filepath.Abs(f.runDir)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:3]), nil
}

// installation is the same for one run directory of one machine, also after a reboot.
func (f *hostFlags) installation() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil { // containers may lack it
		name, _ := os.Hostname()
		id = []byte(name)
	}
	dir, _ := filepath.Abs(f.runDir)
	sum := sha256.Sum256([]byte(strings.TrimSpace(string(id)) + "\x00" + dir))
	return hex.EncodeToString(sum[:8])
}

// machine is what a host works on.
type machine struct {
	network *linux.Network
	runtime *oci.Runtime
	splicer *splice.Splicer
}

func (f *hostFlags) machine(log *slog.Logger) (machine, error) {
	instance, err := f.instance()
	if err != nil {
		return machine{}, err
	}
	splicer, err := f.splicer(log)
	if err != nil {
		return machine{}, err
	}
	network, err := linux.New(linux.Options{
		Instance: instance, Splicer: splicer, Upstreams: upstreams("/etc/resolv.conf"), Logger: log, StateDir: filepath.Join(f.runDir, "net"),
		FlowLogDir: filepath.Join(f.runDir, "flowlogs"),
	})
	if err != nil {
		return machine{}, err
	}
	rt, err := oci.New(oci.Options{
		Runtime: f.runtime, Instance: instance, Dir: filepath.Join(f.runDir, "members"), Program: f.program, Logger: log,
	})
	return machine{network, rt, splicer}, err
}

// upstreams are the machine's own DNS servers, as host:port.
func upstreams(path string) []string {
	cfg, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	out := make([]string, len(cfg.Servers))
	for i, s := range cfg.Servers {
		out[i] = net.JoinHostPort(s, cfg.Port)
	}
	return out
}

// link is how a host reaches its service.
type link struct {
	address string
	ca      []byte
	token   core.Secret
	// handover is set if the service is in this process.
	handover *relay.Handover
}

func (l link) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	return d.DialContext(ctx, "tcp", l.address)
}

func (l link) dialTCP(ctx context.Context) (*net.TCPConn, error) {
	conn, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// openHost checks the machine and takes the run directory.
func openHost(f hostFlags) (release func(), err error) {
	if err := checkHost(f.runtime); err != nil {
		return nil, err
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(f.runDir, 0o711); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	return lockFile(filepath.Join(f.runDir, "lock"), "run directory "+f.runDir)
}

// runHost joins the service and works until ctx ends.
func runHost(ctx context.Context, f hostFlags, l link, log *slog.Logger) error {
	m, err := f.machine(log)
	if err != nil {
		return err
	}
	keeper, err := identity.New(identity.KeeperOptions{
		Role: memberapi.RoleHost, Name: f.name, Token: l.token, CAPEM: l.ca, Dial: l.dial, Logger: log,
	})
	if err != nil {
		return err
	}
	m.network.ResumeLeases() // members run on while the service can't be reached
	if err := joinService(ctx, keeper, log); err != nil {
		return first(err, m.network.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	renewed := make(chan error, 1)
	go func() { renewed <- keeper.Run(ctx) }()
	defer m.splicer.Close()
	h := host.New(host.Options{
		Name: f.name, Installation: f.installation(), Network: m.network, Runtime: m.runtime, Splicer: m.splicer, Pool: f.pool, ServiceName: identity.ServiceName, ServiceCA: l.ca,
		DialService: l.dialTCP, Handover: l.handover, TellTunnels: f.tellTunnels(log), Logger: log,
		Dial: (&hostDialer{keeper: keeper, dial: l.dial}).connect,
	})
	err = h.Run(ctx)
	_ = os.Remove(filepath.Join(f.runDir, tunnelsFile)) // what nobody keeps up to date any more
	cancel()
	return first(err, <-renewed)
}

// joinService tries until the service can be reached; a refusal ends it.
func joinService(ctx context.Context, keeper *identity.Keeper, log *slog.Logger) error {
	for {
		err := keeper.Join(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if c := errs.ClassOf(err); c == errs.Unauthenticated || c == errs.Denied || c == errs.Invalid {
			return err
		}
		log.Warn("the service can't be reached yet, will try again", "error", err)
	}
}

func hostCommand() *cobra.Command {
	var f hostFlags
	var lf logFlags
	var serviceAddr, caFile, tokenFile string
	cmd := &cobra.Command{
		Use:   "host",
		Short: "Run a host: networks and members on this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := lf.logger(os.Stderr)
			if err != nil {
				return err
			}
			l := link{address: serviceAddr}
			if l.ca, err = os.ReadFile(caFile); err != nil {
				return errs.New(errs.Invalid, "--ca: %w", err).WithHint("copy ca.pem from the service's data directory")
			}
			token, err := os.ReadFile(tokenFile)
			if err != nil {
				return errs.New(errs.Invalid, "--token-file: %w", err).WithHint("copy host.token from the service's data directory")
			}
			l.token = core.NewSecret(strings.TrimSpace(string(token)))
			release, err := openHost(f)
			if err != nil {
				return err
			}
			defer release()
			return runHost(cmd.Context(), f, l, log)
		},
	}
	f.add(cmd)
	lf.add(cmd)
	cmd.Flags().StringVar(&serviceAddr, "service", "127.0.0.1:8482", "the service's hosts address")
	cmd.Flags().StringVar(&caFile, "ca", "/var/lib/sluice/ca.pem", "the service's CA certificate")
	cmd.Flags().StringVar(&tokenFile, "token-file", "/var/lib/sluice/host.token", "what this host joins with")
	cmd.AddCommand(hostStatusCommand(), hostCleanupCommand())
	return cmd
}

func hostStatusCommand() *cobra.Command {
	var f hostFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "List what exists on this machine because of Sluice, and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkPrivileges(); err != nil {
				return err
			}
			m, err := f.machine(slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			items, err := host.Inventory(cmd.Context(), m.network, m.runtime)
			if err != nil {
				return err
			}
			processes, err := splicerItems(cmd.Context(), m.splicer)
			if err != nil {
				return err
			}
			tunnels, err := f.tunnelItems(time.Now())
			if err != nil {
				return err
			}
			items = append(append(items, processes...), tunnels...)
			rows := make([][]string, len(items))
			for i, it := range items {
				rows[i] = []string{it.Type, it.Name, it.Why}
			}
			if err := cli.PrintTable(os.Stdout, []string{"TYPE", "NAME", "WHY"}, rows); err != nil {
				return err
			}
			return noteOthers(os.Stderr, f.runDir, len(items), m.network)
		},
	}
	f.addMachine(cmd)
	return cmd
}

// noteOthers says whose list this was, if there is nothing in it or another to ask for.
func noteOthers(w io.Writer, runDir string, listed int, network *linux.Network) error {
	others, err := network.Others()
	if err != nil {
		return err
	}
	if listed == 0 {
		fmt.Fprintf(w, "nothing exists on this machine because of the host with the run directory %s\n", runDir)
	}
	for _, prefix := range slices.Sorted(maps.Keys(others)) {
		fmt.Fprintf(w, "another host, with another --run-dir, made %d network namespaces here (%s…)\n", others[prefix], prefix)
	}
	return nil
}

func hostCleanupCommand() *cobra.Command {
	var f hostFlags
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that a host ever made on this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkHost(f.runtime); err != nil {
				return err
			}
			if _, err := os.Stat(f.runDir); err == nil {
				release, err := lockFile(filepath.Join(f.runDir, "lock"), "run directory "+f.runDir)
				if err != nil {
					return err
				}
				defer release()
			}
			return cleanUp(cmd.Context(), f, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		},
	}
	f.addMachine(cmd)
	return cmd
}

// cleanUp removes members, then connections, then networks, then the run directory.
func cleanUp(ctx context.Context, f hostFlags, log *slog.Logger) error {
	m, err := f.machine(log)
	if err != nil {
		return err
	}
	if err := errors.Join(m.runtime.CleanUp(ctx), endSplicers(f, log), m.network.CleanUp(ctx)); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	for _, own := range []string{"net", "members", "splice", tunnelsFile, tunnelsFile + ".new", "lock"} { // never what is not ours
		if err := os.RemoveAll(filepath.Join(f.runDir, own)); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	_ = os.Remove(f.runDir) // stays if something else is in it
	return nil
}

func listenError(flag, address string, err error) error {
	e := errs.New(errs.Conflict, "%s %s: %w", flag, address, err)
	if errors.Is(err, syscall.EADDRINUSE) {
		return e.WithHint("is another sluice running here? Give this one an address of its own with %s", flag)
	}
	e.Class = errs.Invalid
	return e
}
