// Package hostnet is the contract of a host's networking: virtual networks, NSGs,
// NAT gateways, private endpoints, resolvers, and the two network interfaces of each
// member, made equal to a description.
//
// It holds types only. linux/ implements it on a real kernel; fake/ in memory, for
// tests of its callers. The host package is its only caller; nothing in the service
// or the gateway imports it.
package hostnet

import (
	"context"
	"net"
	"net/netip"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Config is everything that must exist. It is complete: what is absent goes.
type Config struct {
	VNets []core.GoalVNet
	Ports []Port
	// Prepared names, for ports that have no namespace yet, the prepared one that becomes
	// theirs. A name that is not known is as if it were not there. Optional.
	Prepared map[PortKey]string
}

// Port is a member's place in the networks: a network namespace with eth0 (the
// leased address, in its VNet) and tun0 (link-local, to the host's relay). All
// names derive from Member and Generation. Without an address nothing is made: one is
// leased by DHCP on the network of the uplink that leases those of its subnet.
type Port struct {
	Member        string
	Generation    int64
	VNetUID       string
	Subnet        string
	Address       netip.Addr
	TunnelAddress netip.Addr
}

// Key identifies a port on the host.
func (p Port) Key() PortKey { return PortKey{p.Member, p.Generation} }

// PortKey is the identity of a port.
type PortKey struct {
	Member     string
	Generation int64
}

// Status tells what Set could and could not make true.
type Status struct {
	// Ports that exist and are complete, with the path of their network namespace.
	Ports map[PortKey]string
	// Leased tells what the ports hold, or can't have, by DHCP. A port that is not wanted
	// any more is in it until its lease is released.
	Leased map[PortKey]Leased
	// Problems names each object that could not be made as described, and why; one
	// object's trouble does not stop the others.
	Problems []Problem
}

// Leased is what a port holds by DHCP. Without both it waits.
type Leased struct {
	Address netip.Addr
	// Lost says why the port can't have an address, or may use that one no longer.
	Lost string
}

// Problem is one thing that could not be made true.
type Problem struct {
	Object string // "VirtualNetwork/corp", "PrivateEndpoint/orders-db", "member m-…"
	Err    error
}

// Item is something that exists on the machine because of this installation.
type Item struct {
	Type string // "namespace", "veth", "nftables table", "listener", "sysctl"
	Name string
	Why  string // "VirtualNetwork corp"; for all of a port "member ID generation N", exactly
}

// NATMeter is an optional ability of a Network: to tell what its NAT gateways did. It may
// be called beside the Network's other methods.
type NATMeter interface {
	NATGateways(ctx context.Context) ([]core.NATGatewayReport, error)
}

// Preparer is an optional ability of a Network: to make a port's namespace before it is
// known whose it will be, for a process that waits in it. Its methods may be called beside
// the Network's others.
type Preparer interface {
	// Prepare makes a namespace with nothing in it and returns its path. It stays until a
	// port takes it, until Discard, or until another process's Set.
	Prepare(ctx context.Context, name string) (path string, err error)
	// Discard removes a prepared namespace. One that a port took, or that does not exist, is
	// left alone.
	Discard(name string) error
}

// Watcher is an optional ability of a Network: to tell that the next Set has something new
// to say, although nothing else is wanted.
type Watcher interface {
	Changes() <-chan struct{}
}

// Network makes the machine's networking equal to a Config. Its methods may be
// called from one goroutine at a time, except TunnelListener's result.
type Network interface {
	// Up prepares what all else stands on and finds what an earlier process left, so
	// that Set can keep what is still wanted. Nothing running is disturbed.
	Up(ctx context.Context) error
	// Set makes the machine equal to cfg. Repeating it is cheap and changes nothing;
	// a member's established connections outlive every Set that keeps its port.
	Set(ctx context.Context, cfg Config) (Status, error)
	// TunnelListener returns the listener that the members' tunnels reach, and
	// nothing else does. A peer's address is the TunnelAddress of its port.
	TunnelListener() (net.Listener, error)
	// TunnelEndpoint is the address of that listener as members dial it.
	TunnelEndpoint() netip.AddrPort
	// Resolvers returns where members of a subnet send DNS questions.
	Resolvers(vnetUID, subnet string) []netip.AddrPort
	// Inventory lists what exists on the machine, present process or earlier one.
	Inventory(ctx context.Context) ([]Item, error)
	// Left returns which of these ports Inventory would still list something of. It asks
	// the machine about them alone.
	Left(ctx context.Context, ports []PortKey) ([]PortKey, error)
	// Close ends listeners and goroutines; everything in the kernel stays.
	Close() error
	// CleanUp removes from the machine everything that this installation ever made,
	// whatever process made it. It is called without Up.
	CleanUp(ctx context.Context) error
}
