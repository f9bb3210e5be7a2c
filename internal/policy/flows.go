package policy

// MaxMemberFlows bounds the flows that one member may have open at a time in its virtual
// network, half-open ones and UDP included; a TCP connection that is over does not count.
// It is as many files as a member may have open, and keeps one member from filling the
// connection tracking of its network, of the NAT gateway, and of the host behind it.
const MaxMemberFlows = 4096

// flowsSet declares the set in which the kernel counts, and which it fills itself.
func (c *vnetCompiler) flowsSet() {
	c.linef(1, "# how many flows each member has open")
	c.linef(1, "set flows {")
	c.linef(2, "type ipv4_addr")
	c.linef(2, "size 65535")
	c.linef(2, "flags dynamic")
	c.linef(1, "}\n")
}

// boundFlows comes after what knows flows, so it sees new ones alone.
func (c *vnetCompiler) boundFlows() {
	c.linef(2, `add @flows { ip saddr ct count over %d } counter drop comment "more flows than a member may have open"`, MaxMemberFlows)
}
