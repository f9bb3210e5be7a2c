// Package fake is a hostnet.Network in memory, for tests of its callers.
//
// It keeps the contract's promises about what exists: a Machine outlives the Networks
// on it, as a kernel outlives a process. It moves no packets, except that its tunnel
// listener is a real one on the loopback address.
package fake

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sort"
	"sync"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// Machine is what would be the kernel: it keeps what Networks make, whichever made it.
type Machine struct {
	mu    sync.Mutex
	vnets map[string]core.GoalVNet
	ports map[hostnet.PortKey]hostnet.Port
	blank map[string]*Network // prepared namespaces, and who prepared each
	up    bool                // some Network was up since the last CleanUp
	fail  map[string]error
	sets  int
	dhcp  map[hostnet.PortKey]hostnet.Leased
}

// NewMachine returns a machine with nothing on it.
func NewMachine() *Machine {
	m := &Machine{fail: map[string]error{}, dhcp: map[hostnet.PortKey]hostnet.Leased{}}
	m.clear()
	return m
}

func (m *Machine) clear() {
	m.vnets, m.ports, m.up = map[string]core.GoalVNet{}, map[hostnet.PortKey]hostnet.Port{}, false
	m.blank = map[string]*Network{}
}

// Fail makes an object fail from the next Set on, and with nil succeed again. The
// object is named as in hostnet.Problem: "member m-1", "VirtualNetwork/corp".
func (m *Machine) Fail(object string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail[object] = err; err == nil {
		delete(m.fail, object)
	}
}

// Lease says what a port holds by DHCP from the next Set on; nil for nothing any more.
func (m *Machine) Lease(k hostnet.PortKey, l *hostnet.Leased) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if delete(m.dhcp, k); l != nil {
		m.dhcp[k] = *l
	}
}

// Sets counts the calls of Set that reached the machine.
func (m *Machine) Sets() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sets
}

// Ports returns the ports that exist.
func (m *Machine) Ports() []hostnet.Port {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]hostnet.Port, 0, len(m.ports))
	for _, p := range m.ports {
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool { return path(out[i].Key()) < path(out[j].Key()) })
	return out
}

// Prepared returns the names of the prepared namespaces that exist.
func (m *Machine) Prepared() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.blank))
}

// Network implements hostnet.Network on a Machine.
type Network struct {
	machine  *Machine
	mu       sync.Mutex
	listener net.Listener
	endpoint netip.AddrPort
	closed   bool
}

var (
	_ hostnet.Network  = (*Network)(nil)
	_ hostnet.NATMeter = (*Network)(nil)
	_ hostnet.Preparer = (*Network)(nil)
)

// New returns a Network on a machine. Several may follow each other on one machine.
func New(m *Machine) *Network { return &Network{machine: m} }

// Up implements hostnet.Network.
func (n *Network) Up(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errs.New(errs.Conflict, "the host's networking is closed")
	}
	if n.listener != nil {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening for tunnels: %w", err)
	}
	n.listener, n.endpoint = l, l.Addr().(*net.TCPAddr).AddrPort()
	n.machine.mu.Lock()
	n.machine.up = true
	n.machine.mu.Unlock()
	return nil
}

// NATGateways implements hostnet.NATMeter: each NAT gateway is up, and nothing went through it.
func (n *Network) NATGateways(context.Context) ([]core.NATGatewayReport, error) {
	n.machine.mu.Lock()
	defer n.machine.mu.Unlock()
	var out []core.NATGatewayReport
	for _, v := range n.machine.vnets {
		for _, g := range v.NATGateways {
			out = append(out, core.NATGatewayReport{UID: g.UID, Tenant: v.Tenant, VNet: v.Name, Name: g.Name, Up: true})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].UID < out[j].UID })
	return out, nil
}

// Prepare implements hostnet.Preparer.
func (n *Network) Prepare(_ context.Context, name string) (string, error) {
	m := n.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blank[name] != nil {
		return "", errs.New(errs.Conflict, "the namespace %s was prepared already", name)
	}
	m.blank[name] = n
	return "/run/netns/fake-b-" + name, nil
}

// Discard implements hostnet.Preparer.
func (n *Network) Discard(name string) error {
	m := n.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blank[name] == n {
		delete(m.blank, name)
	}
	return nil
}

func (n *Network) isUp() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.listener != nil
}

// Set implements hostnet.Network.
func (n *Network) Set(ctx context.Context, cfg hostnet.Config) (hostnet.Status, error) {
	if !n.isUp() {
		return hostnet.Status{}, errs.New(errs.Unavailable, "the host's networking is not up")
	}
	if err := ctx.Err(); err != nil {
		return hostnet.Status{}, errs.As(err)
	}
	return n.machine.set(cfg, n), nil
}

func (m *Machine) set(cfg hostnet.Config, by *Network) hostnet.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.blank, func(_ string, n *Network) bool { return n != by })
	m.sets++
	s := hostnet.Status{Ports: map[hostnet.PortKey]string{}, Leased: maps.Clone(m.dhcp)}
	refuse := func(object string, err error) {
		s.Problems = append(s.Problems, hostnet.Problem{Object: object, Err: err})
	}
	vnets := map[string]core.GoalVNet{}
	for _, v := range cfg.VNets {
		if err := m.fail["VirtualNetwork/"+v.Name]; err != nil {
			refuse("VirtualNetwork/"+v.Name, err)
			continue
		}
		vnets[v.UID] = v
	}
	ports, taken := map[hostnet.PortKey]hostnet.Port{}, map[string]string{}
	for _, p := range cfg.Ports {
		if !p.Address.IsValid() {
			continue // it waits for one
		}
		if err := m.check(p, vnets, taken); err != nil {
			refuse("member "+p.Member, err)
			continue
		}
		ports[p.Key()], s.Ports[p.Key()] = p, path(p.Key())
		if _, have := m.ports[p.Key()]; !have {
			delete(m.blank, cfg.Prepared[p.Key()])
		}
		taken[p.VNetUID+" "+p.Address.String()], taken[p.TunnelAddress.String()] = p.Member, p.Member
	}
	m.vnets, m.ports = vnets, ports
	return s
}

func (m *Machine) check(p hostnet.Port, vnets map[string]core.GoalVNet, taken map[string]string) error {
	if err := m.fail["member "+p.Member]; err != nil {
		return err
	}
	v, ok := vnets[p.VNetUID]
	if !ok {
		return errs.New(errs.NotFound, "its virtual network %s is not on this host", p.VNetUID)
	}
	s, ok := subnet(v, p.Subnet)
	if !ok {
		return errs.New(errs.NotFound, "the virtual network %s has no subnet %q", v.Name, p.Subnet)
	}
	if !s.Prefix.Contains(p.Address) {
		return errs.New(errs.Invalid, "the address %s is not in subnet %s (%s)", p.Address, s.Name, s.Prefix)
	}
	for _, key := range []string{p.VNetUID + " " + p.Address.String(), p.TunnelAddress.String()} {
		if other, ok := taken[key]; ok {
			return errs.New(errs.Conflict, "the address %s or %s is that of member %s", p.Address, p.TunnelAddress, other)
		}
	}
	return nil
}

func subnet(v core.GoalVNet, name string) (core.Subnet, bool) {
	for _, s := range v.Subnets {
		if s.Name == name {
			return s, true
		}
	}
	return core.Subnet{}, false
}

func path(k hostnet.PortKey) string {
	return fmt.Sprintf("/run/netns/fake-%s-%d", k.Member, k.Generation)
}

// TunnelListener implements hostnet.Network. Peers have loopback addresses: a test that
// needs the tunnel address of a port dials from it, 127.0.0.0/8 being all local.
func (n *Network) TunnelListener() (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listener == nil {
		return nil, errs.New(errs.Unavailable, "the host's networking is not up")
	}
	return n.listener, nil
}

// TunnelEndpoint implements hostnet.Network.
func (n *Network) TunnelEndpoint() netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.endpoint
}

// Resolvers implements hostnet.Network.
func (n *Network) Resolvers(vnetUID, name string) []netip.AddrPort {
	n.machine.mu.Lock()
	defer n.machine.mu.Unlock()
	s, ok := subnet(n.machine.vnets[vnetUID], name)
	if !ok {
		return nil
	}
	second := s.Prefix.Masked().Addr().Next().Next()
	return []netip.AddrPort{netip.AddrPortFrom(second, 53), netip.AddrPortFrom(second.Next(), 53)}
}

// Inventory implements hostnet.Network.
func (n *Network) Inventory(context.Context) ([]hostnet.Item, error) {
	m := n.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	var items []hostnet.Item
	if m.up {
		items = append(items, hostnet.Item{Type: "namespace", Name: "fake-t", Why: "tunnels of all members"})
	}
	for _, v := range m.vnets {
		items = append(items, hostnet.Item{Type: "namespace", Name: "fake-v-" + v.UID, Why: "VirtualNetwork " + v.Name})
	}
	for k := range m.ports {
		items = append(items, hostnet.Item{
			Type: "namespace", Name: fmt.Sprintf("fake-%s-%d", k.Member, k.Generation),
			Why: fmt.Sprintf("member %s generation %d", k.Member, k.Generation),
		})
	}
	for name := range m.blank {
		items = append(items, hostnet.Item{Type: "namespace", Name: "fake-b-" + name, Why: "prepared " + name})
	}
	sort.Slice(items, func(i, j int) bool { return items[i].Name < items[j].Name })
	return items, nil
}

// Left implements hostnet.Network.
func (n *Network) Left(_ context.Context, ports []hostnet.PortKey) (left []hostnet.PortKey, err error) {
	n.machine.mu.Lock()
	defer n.machine.mu.Unlock()
	for _, k := range ports {
		if _, exists := n.machine.ports[k]; exists {
			left = append(left, k)
		}
	}
	return left, nil
}

// Close implements hostnet.Network.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	if n.listener == nil {
		return nil
	}
	err := n.listener.Close()
	n.listener = nil
	return err
}

// CleanUp implements hostnet.Network.
func (n *Network) CleanUp(context.Context) error {
	if err := n.Close(); err != nil {
		return err
	}
	n.machine.mu.Lock()
	defer n.machine.mu.Unlock()
	n.machine.clear()
	return nil
}
