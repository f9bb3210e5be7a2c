package flowlog

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Version is that of the format.
const Version = 4

// Record is what is written about the flows of one network security group at one time.
type Record struct {
	Time           time.Time   `json:"time"`
	Version        int         `json:"flowLogVersion"`
	Tenant         string      `json:"tenant"`
	VirtualNetwork string      `json:"virtualNetwork"`
	Lost           *Lost       `json:"lost,omitempty"`
	FlowRecords    FlowRecords `json:"flowRecords"`
}

// FlowRecords holds the flows by access control list: here, by network security group.
type FlowRecords struct {
	Flows []ACL `json:"flows"`
}

// ACL is a network security group's part.
type ACL struct {
	ACLID      string  `json:"aclID"`
	FlowGroups []Group `json:"flowGroups"`
}

// Group is what one rule decided about.
type Group struct {
	Rule       string   `json:"rule"`
	FlowTuples []string `json:"flowTuples"`
}

// entry is a tuple and the rule that it stands under.
type entry struct {
	rule string
	Tuple
}

// entries are those of a record in the order of their times: a flow that ended and one
// with the same ports that began then may stand under different rules.
func (r Record) entries() (out []entry) {
	for _, acl := range r.FlowRecords.Flows {
		for _, g := range acl.FlowGroups {
			for _, s := range g.FlowTuples {
				if t, err := ParseTuple(s); err == nil {
					out = append(out, entry{g.Rule, t})
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b entry) int { return a.Time.Compare(b.Time) })
	return out
}

// Lost counts what could not be written, or not exactly, since the last record. Events
// and packets are those of the whole virtual network.
type Lost struct {
	// DeniedPackets were reported by the kernel and found no room.
	DeniedPackets uint64 `json:"deniedPackets,omitempty"`
	// DelayedEnds is how often the end of a flow found no room: the kernel repeats it.
	DelayedEnds uint64 `json:"delayedEnds,omitempty"`
	// UnseenEnds are flows that ended while nobody looked: their last counters are unknown.
	UnseenEnds uint64 `json:"unseenEnds,omitempty"`
	// UnknownRules are flows that began under rules which are no longer known.
	UnknownRules uint64 `json:"unknownRules,omitempty"`
	// Entries were dropped because the files could not be written for too long.
	Entries uint64 `json:"entries,omitempty"`
}

func (l *Lost) add(o Lost) {
	l.DeniedPackets += o.DeniedPackets
	l.DelayedEnds += o.DelayedEnds
	l.UnseenEnds += o.UnseenEnds
	l.UnknownRules += o.UnknownRules
	l.Entries += o.Entries
}

// Counters of one direction of a flow.
type Counters struct{ Packets, Bytes uint64 }

func (c Counters) minus(o Counters) Counters {
	if c.Packets < o.Packets || c.Bytes < o.Bytes { // the kernel's were reset
		return c
	}
	return Counters{c.Packets - o.Packets, c.Bytes - o.Bytes}
}

func (c *Counters) add(o Counters) { c.Packets, c.Bytes = c.Packets+o.Packets, c.Bytes+o.Bytes }

// State is what a tuple says about its flow.
type State byte

// The states.
const (
	Begin    State = 'B'
	Continue State = 'C'
	End      State = 'E'
	Deny     State = 'D'
)

// Tuple is one entry: a flow, and what happened to it.
type Tuple struct {
	Time time.Time // to the millisecond
	FiveTuple
	Direction core.Direction
	State     State
	// Sent is from the source to the destination; both are since the entry before.
	Sent, Received Counters
}

// FiveTuple identifies a flow while it lasts. Ports are 0 where the protocol has none.
type FiveTuple struct {
	Source, Destination         netip.Addr
	SourcePort, DestinationPort uint16
	Protocol                    uint8
}

// notEncrypted says that the virtual network itself does not encrypt.
const notEncrypted = "NX"

// String gives the tuple as it stands in the log.
func (t Tuple) String() string {
	b := make([]byte, 0, 96)
	b = strconv.AppendInt(b, t.Time.UnixMilli(), 10)
	b = t.Source.AppendTo(append(b, ','))
	b = t.Destination.AppendTo(append(b, ','))
	b = strconv.AppendUint(append(b, ','), uint64(t.SourcePort), 10)
	b = strconv.AppendUint(append(b, ','), uint64(t.DestinationPort), 10)
	b = strconv.AppendUint(append(b, ','), uint64(t.Protocol), 10)
	b = append(b, ',', t.Direction[0], ',', byte(t.State), ',')
	b = append(b, notEncrypted...)
	for _, n := range []uint64{t.Sent.Packets, t.Sent.Bytes, t.Received.Packets, t.Received.Bytes} {
		b = strconv.AppendUint(append(b, ','), n, 10)
	}
	return string(b)
}

// ParseTuple reads what String wrote.
func ParseTuple(s string) (Tuple, error) {
	f := strings.Split(s, ",")
	if len(f) != 13 {
		return Tuple{}, fmt.Errorf("the tuple %q has %d fields, not 13", s, len(f))
	}
	var failed error
	number := func(i, bits int) uint64 {
		n, err := strconv.ParseUint(f[i], 10, bits)
		if err != nil && failed == nil {
			failed = fmt.Errorf("field %d of the tuple %q: %w", i+1, s, err)
		}
		return n
	}
	addr := func(i int) netip.Addr {
		a, err := netip.ParseAddr(f[i])
		if err != nil && failed == nil {
			failed = fmt.Errorf("field %d of the tuple %q: %w", i+1, s, err)
		}
		return a
	}
	t := Tuple{
		Time: time.UnixMilli(int64(number(0, 63))),
		FiveTuple: FiveTuple{
			Source: addr(1), Destination: addr(2), SourcePort: uint16(number(3, 16)), DestinationPort: uint16(number(4, 16)), Protocol: uint8(number(5, 8)),
		},
		Sent: Counters{number(9, 64), number(10, 64)}, Received: Counters{number(11, 64), number(12, 64)},
	}
	directions := map[string]core.Direction{"I": core.Inbound, "O": core.Outbound}
	t.Direction = directions[f[6]]
	if t.Direction == "" || !slices.Contains([]string{"B", "C", "E", "D"}, f[7]) {
		return Tuple{}, fmt.Errorf("the tuple %q has direction %q and state %q", s, f[6], f[7])
	}
	t.State = State(f[7][0])
	return t, failed
}
