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
// Outbound, the NSG of the source's own NIC is asked first, then its subnet's; inbound,
// the NSG of the destination's subnet, then the destination's own. All must allow. Where
// there is no NSG everything is allowed. Only new flows are evaluated: what is established
// outlives a change of rules.
//
// A rule that names ports matches TCP and UDP only; with another protocol beside the
// ports it matches nothing. An IPv6 address in a rule matches nothing, since IPv6 is
// dropped before any rule is asked.
//
// # Two forms
//
// The rules of one direction are a chain in the order of their priorities. Past 200 rules
// they are buckets: the destination port leads, through disjoint intervals, to a chain of
// those rules alone that can match it. The same verdicts come of the same rules; a rule
// that stands in several buckets has a counter in each, all under one comment.
//
// # Names
//
// A rule may name application security groups and service tags beside prefixes. They are
// sets in the ruleset, so that members coming and going change elements alone.
//
// VirtualNetwork is the address space. Internet is all that is outside of it, but not
// link-local (169.254.0.0/16), loopback and multicast addresses, which have no route.
// LoadBalancer stands for a platform's health probes; there are none here, so it matches
// nothing.
//
// PlatformDNS is the resolvers' addresses. Questions to the resolver (UDP and TCP port 53)
// are platform traffic: only outbound rules that name PlatformDNS are asked about them,
// and where none matches they are allowed. The resolver belongs to no subnet, so inbound
// rules never apply to it. PlatformTunnel is the same for the relay that a member's tunnel
// ends at: it has a link of its own, outside of the virtual network's ruleset, so the
// verdict is the evaluator's, and the host puts it in force there.
package policy
