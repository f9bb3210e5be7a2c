// Package splice joins two TCP connections so that what one side sends, the other
// receives, as nearly as possible as if they were one connection: half-closes and
// resets pass through, back-pressure holds, and the kernel moves the bytes
// (splice(2)) without any program of ours reading them.
//
// The joining happens in a process of its own, the splicer (Serve), which a host hands
// its connections to (Splicer.Join) and which outlives the host: a query's bytes flow
// on while a host is restarted. The splicer is one thread and one epoll set. It knows
// file descriptors and labels, and nothing of members, endpoints or policy: accepting,
// dialling, limits and accounts are its callers', the tunnel's relay and the private
// endpoints of a host.
package splice
