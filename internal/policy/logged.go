package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// FlowLogGroup is the netlink group to which the ruleset of a network with a flow log sends
// packets that a rule denies.
const FlowLogGroup = 1

// LoggedRule names the rule that denied a packet, as the kernel reports it.
type LoggedRule struct {
	NSG       string
	Rule      string // empty where the name had no room: then the priority tells
	Priority  int    // 0 where the name tells
	Direction core.Direction
}

// maxLogPrefix is what the kernel keeps of a log's prefix, in bytes.
const maxLogPrefix = 127

// logPrefix is how the kernel names a rule to the flow log: "data/deny-all/I", or
// "data/#4096/I" where the name is too long. A rule's name begins with no #.
func logPrefix(nsg string, r core.SecurityRule) string {
	tail := "/" + string(r.Direction[:1])
	if s := plain(nsg) + "/" + plain(r.Name) + tail; len(s) <= maxLogPrefix {
		return s
	}
	return fmt.Sprintf("%s/#%d%s", plain(nsg), r.Priority, tail)
}

// ParseLogPrefix reads what logPrefix wrote.
func ParseLogPrefix(s string) (LoggedRule, bool) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" {
		return LoggedRule{}, false
	}
	out := LoggedRule{NSG: parts[0], Rule: parts[1]}
	switch parts[2] {
	case "I":
		out.Direction = core.Inbound
	case "O":
		out.Direction = core.Outbound
	default:
		return LoggedRule{}, false
	}
	if number, ok := strings.CutPrefix(parts[1], "#"); ok {
		n, err := strconv.Atoi(number)
		if err != nil {
			return LoggedRule{}, false
		}
		out.Rule, out.Priority = "", n
	}
	return out, true
}

// LogsFlows reports whether a rule of the network's NSGs asks for a flow log.
func LogsFlows(v core.GoalVNet) bool {
	return slices.ContainsFunc(v.NSGs, func(n core.NetworkSecurityGroup) bool { return n.FlowLog.Enabled })
}

// logged has a rule that denies report each packet, if the network has a flow log: that of
// its NSG, or of one that let the packet come so far.
func (r nftRule) logged(logs bool, n core.NetworkSecurityGroup, of core.SecurityRule) nftRule {
	if logs && of.Access == core.Deny {
		r.verdict = fmt.Sprintf("log prefix %q group %d drop", logPrefix(n.Name, of), FlowLogGroup)
	}
	return r
}

// mark has what passes the rules from here carry the number of the rules that it met.
func (c *vnetCompiler) mark() {
	if c.in.FlowMark != 0 {
		c.linef(2, "ct mark set 0x%08x", c.in.FlowMark)
	}
}
