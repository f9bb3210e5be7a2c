// Package flowlog writes down which flows the network security groups of a virtual
// network allowed and denied, in files for other tools.
//
// It owns the files below its directory, and in the namespace of the virtual network four
// netlink sockets and the values nf_conntrack_acct, nf_conntrack_timestamp and
// nf_conntrack_events. It programs no rules: the ruleset of package policy marks the
// flows that pass and reports the packets that a rule denies. hostnet/linux is the only
// caller.
//
// # How a flow gets into the log
//
// The kernel counts. At each interval all tracked flows are read: a flow that is new in
// the log gets B, with the time at which the kernel saw it begin, any other C with what
// was added since. When the kernel forgets a flow it says so, with the last counters: E.
// In between they are also read soon after one began, for its B. A flow that came and
// went before it was seen gets both at once. A packet that a rule
// denies gets D; those of one flow within one flush are one entry.
//
// # Which rule
//
// The mark on a flow is a hash of the rules in force when it began. The rules are kept
// under that number, in memory and on disk, so that policy.Evaluate gives the rule that
// allowed the flow also after a change and after a restart. A flow without mark began
// while no log was on, and is not in it.
//
// # What can be lost
//
// The kernel repeats the end of a flow until it was taken. A report of a denied packet
// that found no room is lost; its number is missing then, and each record says how many
// were. The state of the flows is in a file beside the log; what was written after it is
// read from the log, so neither a stop nor a crash makes an entry twice.
package flowlog
