// Package resolver is the DNS server of one virtual network.
//
// It answers the names of the private zones that are linked to the network, and only it
// knows them, so two networks may use the same zone with different records. Names outside
// the zones are asked of servers, one after the other, or refused if there are none. An
// alias is followed from zones to servers and back. What servers answer is kept for as long
// as they allow, for this network alone, and forgotten when zones or servers change.
//
// A name without an answer comes with the reason, as an extended DNS error: which zone
// decided, or which servers were asked and what each did.
//
// It does not make sockets: hostnet/linux, its only caller, opens them inside the
// network's namespace and gives a way to dial servers. Which members may ask is a matter
// of the network's rules, not of this package.
package resolver
