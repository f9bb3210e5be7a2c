// Package policy turns network security groups, NAT gateways and routes into two
// things: nftables text that a kernel enforces, and verdicts that a person can read.
//
// CompileVNet and CompileNAT give the text for `nft -f -`; each replaces one table
// atomically, so established flows go on and new ones meet the new rules. Evaluate
// answers for one flow what the text would do with it, and which rule decided. The two
// share no matching code: a test lets the kernel check one against the other.
//
// The package does no I/O and knows nothing of interfaces beyond the names it is given.
// hostnet/linux applies the text; the service and the CLI ask for verdicts.
//
// # Rules
//
// The outbound rules of the source's subnet come first, then the inbound rules of the
// destination's subnet; both must allow. A subnet without an NSG allows everything. Only
// new flows are evaluated: what is established outlives a change of rules.
//
// A rule that names ports matches TCP and UDP only; with another protocol beside the
// ports it matches nothing. An IPv6 address in a rule matches nothing, since IPv6 is
// dropped before any rule is asked.
//
// # Tags
//
// VirtualNetwork is the address space. Internet is all that is outside of it, but not
// link-local (169.254.0.0/16), loopback and multicast addresses, which have no route.
// LoadBalancer stands for a platform's health probes; there are none here, so it matches
// nothing. PlatformTunnel matches nothing either: the tunnel has a link of its own that
// does not pass through the virtual network. PlatformDNS is the resolvers' addresses.
//
// Questions to the resolver (its address, UDP and TCP port 53) are platform traffic: only
// outbound rules that name PlatformDNS are asked about them, and where none matches they
// are allowed. The resolver belongs to no subnet, so inbound rules never apply to it.
package policy
