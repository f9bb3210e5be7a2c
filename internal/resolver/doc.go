// Package resolver is the DNS server of one virtual network.
//
// It answers the names of the private zones that are linked to the network, and only it
// knows them, so two networks may use the same zone with different records. Names outside
// the zones are asked of the upstreams, one after the other, or refused if there are none.
//
// It does not make sockets: hostnet/linux, its only caller, opens them inside the
// network's namespace and gives a way to dial upstreams. Which members may ask is a matter
// of the network's rules, not of this package.
package resolver
