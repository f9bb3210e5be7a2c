// Package linux makes virtual networks, members' interfaces, NSGs, NAT gateways,
// private endpoints and resolvers on a real Linux kernel.
//
// It owns every network namespace named sluice-<instance>-…, everything inside them,
// and, in the host's own namespace, the interfaces whose names begin with
// s<instance>-, the nftables table sluice-<instance> and, together with other
// installations, the sysctl values that it remembers in its state directory. It owns no process and no container: a member's
// namespace is handed to the runtime by its path.
//
// The way of a packet:
//
//	member M ── eth0 ─ veth ─ V (routes, NSG) ─ veth ─ N (SNAT, timers) ─ veth ─ host
//	         └─ tun0 ─ veth ─ T (the relay's listener, nothing else)
//
// V is one namespace per virtual network, N one per NAT gateway, T one per
// installation. There is no bridge and no ARP: each interface carries /32 routes and
// permanent neighbours, so that traffic inside a subnet meets the rules as well and
// two virtual networks may use the same addresses.
//
// Everything is asserted, not remembered: each step may be repeated, so that a crash
// between any two of them is repaired by doing them again. The host package is the
// only caller.
package linux
