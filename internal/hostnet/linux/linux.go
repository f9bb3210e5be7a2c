package linux

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
	"github.com/sluice-gateway/sluice/internal/splice"
	"golang.org/x/sys/unix"
)

// Options configure a Network.
type Options struct {
	// Instance is in the name of everything on this machine, so that two
	// installations never meet: 1 to 8 lower-case hex digits. Required.
	Instance string
	// StateDir is where sysctl values of the host are remembered for CleanUp. Required.
	StateDir string
	// FlowLogDir is below which flow logs are written. Default: flowlogs in StateDir.
	FlowLogDir string
	// FlowLogFlush is how long an entry of a flow log waits before it is written.
	// Default 10 s.
	FlowLogFlush time.Duration
	// Upstreams are the DNS servers, as host:port, for names outside private zones.
	// Optional: without them such names have no answer.
	Upstreams []string
	// TunnelPort is the port of the relay's listener. Default 8483.
	TunnelPort uint16
	// HostNS is the path of the namespace that NAT gateways leave through and private
	// endpoints' targets are dialled from. Default: the process's own.
	HostNS string
	// VerifyEvery is after how long a Set looks at the kernel again for what it has
	// made already. Default 30 s; negative: at each Set.
	VerifyEvery time.Duration
	// MaxEndpointConns bounds the connections of one private endpoint. Default 1024.
	MaxEndpointConns int
	// BucketsFrom is how many rules of a direction are still compiled to one chain.
	// Default: policy's. Other values are for measurements.
	BucketsFrom int
	// MaxEndpointConnsPerMember bounds those of one member, so that none takes all.
	// Default 256: two for each query that the tunnel can carry at a time.
	MaxEndpointConnsPerMember int
	// MaxNATFlowsPerMember bounds the flows of one member in a NAT gateway. Default:
	// policy.MaxMemberFlows, and at most an eighth of what the kernel tracks.
	MaxNATFlowsPerMember int
	// DialTimeout bounds the dial to a private endpoint's target. Default 5 s.
	DialTimeout time.Duration
	// Splicer joins the connections of private endpoints to their targets, and keeps them
	// when the Network is closed. Default: one of its own, which ends with it.
	Splicer *splice.Splicer
	// DHCPGiveUp is for how long a member waits for an address by DHCP. Default 20 s.
	DHCPGiveUp time.Duration
	// Logger gets one line per change of state. Default: none.
	Logger *slog.Logger
}

// Network implements hostnet.Network on this machine's kernel.
type Network struct {
	opts  Options
	names names
	log   *slog.Logger
	mem   memory

	mu       sync.Mutex
	host     *space
	hostSide *hostSide
	tunnel   *tunnel
	vnets    map[string]*vnet
	swept    bool
	reaper   *reaper
	prepared prepared

	changes    chan struct{} // capacity 1: a lease came or went
	leaseFile  sync.Mutex
	uplinkFile sync.Mutex
	resuming   sync.Mutex
	resumed    map[uplinkKey]*resumed // leases that no goal has spoken of yet

	meters sync.Mutex // one report of the NAT gateways at a time
	alarms natAlarms

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	own    *splice.Splicer // nil: it is somebody else's
}

var (
	_ hostnet.Network  = (*Network)(nil)
	_ hostnet.Preparer = (*Network)(nil)
	_ hostnet.Watcher  = (*Network)(nil)
)

var instanceForm = regexp.MustCompile(`^[0-9a-f]{1,8}$`)

// New checks the options. It touches nothing on the machine.
func New(o Options) (*Network, error) {
	if !instanceForm.MatchString(o.Instance) {
		return nil, errs.New(errs.Invalid, "the instance %q is not 1 to 8 lower-case hex digits", o.Instance)
	}
	if o.StateDir == "" {
		return nil, errs.New(errs.Invalid, "the host's networking needs a state directory")
	}
	o.FlowLogDir = cmp.Or(o.FlowLogDir, filepath.Join(o.StateDir, "flowlogs"))
	o.TunnelPort = cmp.Or(o.TunnelPort, 8483)
	o.VerifyEvery = cmp.Or(o.VerifyEvery, 30*time.Second)
	o.MaxEndpointConns = cmp.Or(o.MaxEndpointConns, 1024)
	o.MaxEndpointConnsPerMember = cmp.Or(o.MaxEndpointConnsPerMember, 256)
	o.DialTimeout = cmp.Or(o.DialTimeout, 5*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var own *splice.Splicer
	if o.Splicer == nil {
		own = splice.Local(o.Logger)
		o.Splicer = own
	}
	return &Network{
		own: own, opts: o, names: names{o.Instance}, log: o.Logger,
		mem:   memory{filepath.Join(o.StateDir, "sysctl-"+o.Instance+".json")},
		vnets: map[string]*vnet{}, prepared: prepared{spaces: map[string]*space{}}, alarms: natAlarms{}, reaper: newReaper(), ctx: ctx, cancel: cancel,
		changes: make(chan struct{}, 1), resumed: map[uplinkKey]*resumed{},
	}, nil
}

// Changes implements hostnet.Watcher.
func (n *Network) Changes() <-chan struct{} { return n.changes }

func (n *Network) poke() {
	select {
	case n.changes <- struct{}{}:
	default:
	}
}

// Up implements hostnet.Network.
func (n *Network) Up(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return errs.New(errs.Conflict, "the host's networking is closed")
	}
	if n.tunnel != nil {
		return nil
	}
	if err := checkMachine(); err != nil {
		return err
	}
	if err := prepareDir(); err != nil {
		return machineError("preparing "+netnsDir, err)
	}
	host, err := n.openHostSide()
	if err != nil {
		return machineError("opening the host's network namespace", err)
	}
	t, err := n.openTunnel(ctx)
	if err != nil {
		host.close()
		return machineError("making the tunnel's namespace", err)
	}
	n.host, n.hostSide, n.tunnel = host.at, host, t
	n.ResumeLeases()
	return nil
}

// checkMachine says at once what is missing and what it is needed for.
func checkMachine() error {
	if os.Geteuid() != 0 {
		return errs.New(errs.Denied, "making network namespaces needs root, and this process runs as user %d", os.Geteuid()).
			WithHint("run it as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN as root of a user namespace")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return errs.New(errs.Unavailable, "the program nft, which programs the packet rules, was not found: %w", err).
			WithHint("install it: apt-get install nftables")
	}
	return nil
}

// machineError gives an error of the kernel its class.
func machineError(doing string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return errs.New(errs.Denied, "%s: %w", doing, err).
			WithHint("the host role needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN")
	case errors.Is(err, unix.EADDRINUSE):
		return errs.New(errs.Conflict, "%s: %w", doing, err).
			WithHint("another process of this installation is running; stop it first")
	}
	return errs.New(errs.Internal, "%s: %w", doing, err)
}

// TunnelListener implements hostnet.Network. The listener's connections are plain
// *net.TCPConn, so that they can be spliced.
func (n *Network) TunnelListener() (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tunnel == nil {
		return nil, errNotUp()
	}
	return n.tunnel.listener, nil
}

// TunnelEndpoint implements hostnet.Network.
func (n *Network) TunnelEndpoint() netip.AddrPort {
	return netip.AddrPortFrom(relayAddress, n.opts.TunnelPort)
}

// Resolvers implements hostnet.Network.
func (n *Network) Resolvers(vnetUID, subnet string) []netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	v := n.vnets[vnetUID]
	if v == nil {
		return nil
	}
	s, ok := subnetOf(v.goal, subnet)
	if !ok {
		return nil
	}
	var out []netip.AddrPort
	for _, a := range resolverAddresses(s.Prefix) {
		out = append(out, netip.AddrPortFrom(a, dnsPort))
	}
	return out
}

func errNotUp() error {
	return errs.New(errs.Unavailable, "the host's networking is not up")
}

// due says that what was looked at then must be looked at again.
func (n *Network) due(then time.Time) bool {
	return n.opts.VerifyEvery < 0 || time.Since(then) >= n.opts.VerifyEvery
}

// Close implements hostnet.Network.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cancel()
	n.reaper.wait()
	for k := range n.resumed {
		n.endResumed(k)
	}
	for uid, v := range n.vnets {
		v.silence()
		v.close()
		delete(n.vnets, uid)
	}
	n.prepared.close()
	var err error
	if n.tunnel != nil {
		err = n.tunnel.close()
	}
	if n.hostSide != nil {
		n.hostSide.close()
	}
	n.tunnel, n.hostSide, n.host, n.swept = nil, nil, nil, false
	if n.own != nil {
		n.own.Close()
	}
	return err
}
