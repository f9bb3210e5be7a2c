package policy

import (
	"fmt"
	"hash/fnv"
	"strings"
)

// NATMeterTable is the nftables table that counts what a NAT gateway does. It is apart
// from the rules, so that it goes on counting when they are replaced.
const NATMeterTable = "sluice-nat-meter"

// The named counters of the meter. Packets are counted as the kernel handles them: what it
// joined to one large segment counts once.
const (
	MeterFromInside  = "from_inside"  // arrived from the virtual network
	MeterFromOutside = "from_outside" // arrived from outside
	MeterPassedOut   = "passed_out"   // left, translated
	MeterPassedIn    = "passed_in"    // left to the virtual network
	MeterAttempted   = "attempted"    // flows that asked for a port
	MeterEstablished = "established"  // flows that were answered
	MeterRefused     = "refused"      // TCP flows that were answered with a reset
	MeterClosed      = "closed"       // TCP flows in which one end said that it is over
)

// What the kernel's own statistics of connection tracking add: a flow for which no port was
// found is dropped where it would have been entered, behind every rule.
const (
	MeterNoPort = "no_port" // flows without a port ("insert_failed")
	MeterNoRoom = "no_room" // flows that could not be tracked at all ("drop", the former taken off)
)

// The marks that the meter leaves on flows, so that each is counted once.
const (
	markEstablished = 1
	markClosed      = 3 // established before
	markRefused     = 4
)

// NATMeterCounters lists the named counters, with the one that names the version of the
// text: where all are, the meter is that of CompileNATMeter.
func NATMeterCounters(inside, outside string) []string {
	out := meterNames()
	return append(out, meterVersion(meterRules(inside, outside)))
}

func meterNames() []string {
	return []string{MeterFromInside, MeterFromOutside, MeterPassedOut, MeterPassedIn,
		MeterAttempted, MeterEstablished, MeterRefused, MeterClosed}
}

func meterVersion(text string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(text)) // never fails
	return fmt.Sprintf("version_%08x", h.Sum32())
}

// CompileNATMeter gives the nftables text that replaces the meter of a NAT gateway, its
// counters at zero. It decides nothing: it counts what the rules of CompileNAT let through.
func CompileNATMeter(inside, outside string) (string, error) {
	for _, name := range []string{inside, outside} {
		if err := checkInterface(name); err != nil {
			return "", err
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table ip %[1]s {}\ndelete table ip %[1]s\ntable ip %[1]s {\n", NATMeterTable)
	for _, name := range NATMeterCounters(inside, outside) {
		fmt.Fprintf(&b, "\tcounter %s {\n\t}\n", name)
	}
	b.WriteString("\n" + meterRules(inside, outside) + "}\n")
	return b.String(), nil
}

// meterRules stand before and after the rules that decide.
func meterRules(inside, outside string) string {
	out := fmt.Sprintf("iifname %q oifname %q", inside, outside)
	in := fmt.Sprintf("iifname %q oifname %q", outside, inside)
	lines := []string{
		"\tchain arrived {",
		"\t\ttype filter hook prerouting priority raw - 1; policy accept;",
		fmt.Sprintf("\t\tiifname %q counter name %s accept", inside, MeterFromInside),
		fmt.Sprintf("\t\tiifname %q counter name %s", outside, MeterFromOutside),
		"\t}", "",
		"\tchain flows {",
		"\t\ttype filter hook forward priority 100; policy accept;",
		fmt.Sprintf("\t\tct mark %d tcp flags & (fin | rst) != 0 ct mark set %d counter name %s", markEstablished, markClosed, MeterClosed),
		"\t\tct mark != 0 accept",
		"\t\tct direction original accept",
		"\t\tct state != established accept",
		fmt.Sprintf("\t\ttcp flags & rst == rst ct mark set %d counter name %s accept", markRefused, MeterRefused),
		fmt.Sprintf("\t\tct mark set %d counter name %s", markEstablished, MeterEstablished),
		"\t}", "",
		"\tchain passed {",
		"\t\ttype filter hook postrouting priority srcnat + 1; policy accept;",
		"\t\t" + in + " counter name " + MeterPassedIn + " accept",
		"\t\t" + out + " counter name " + MeterPassedOut,
		"\t\t" + out + " ct status ! confirmed counter name " + MeterAttempted,
		"\t}", "",
	}
	return strings.Join(lines, "\n")
}

// NATCount is what one counter of a meter holds.
type NATCount struct{ Packets, Bytes uint64 }

// NATCounts are the counters of a meter, by name.
type NATCounts map[string]NATCount

// NATFlows counts the flows that a NAT gateway tracks, by what the meter marked on them.
type NATFlows struct{ Waiting, Established, Closed, Refused uint64 }

// Add counts a flow by its mark.
func (f *NATFlows) Add(mark uint32) {
	switch mark {
	case markEstablished:
		f.Established++
	case markClosed:
		f.Closed++
	case markRefused:
		f.Refused++
	default:
		f.Waiting++
	}
}

// NATTotals is what became of the flows of a NAT gateway, since its meter began.
type NATTotals struct {
	BytesOut, BytesIn     uint64 // passed on
	PacketsOut, PacketsIn uint64
	Dropped               uint64 // packets that came and were not passed on
	Attempted             uint64 // flows that asked for a port
	Established           uint64 // of these, answered
	Failed                uint64 // of these, without a port, refused, or never answered
	Closed                uint64 // of the established, ended by FIN or RST
	TimedOut              uint64 // of the established, ended by the idle time-out
}

// NATAccount follows from the counters as they were before and after the flows were
// listed: a flow that is not tracked any more and was not closed has timed out. What
// moves meanwhile is counted the next time, never twice.
func NATAccount(before NATCounts, flows NATFlows, after NATCounts) NATTotals {
	n := func(c NATCounts, name string) uint64 { return c[name].Packets }
	arrived := n(before, MeterFromInside) + n(before, MeterFromOutside)
	// A packet without a port had passed every rule when it was dropped.
	out := less(n(before, MeterPassedOut), n(before, MeterNoPort))
	t := NATTotals{
		BytesOut: before[MeterPassedOut].Bytes, PacketsOut: out,
		BytesIn: before[MeterPassedIn].Bytes, PacketsIn: n(before, MeterPassedIn),
		Dropped:     less(arrived, less(n(after, MeterPassedOut), n(before, MeterNoPort))+n(after, MeterPassedIn)),
		Attempted:   n(before, MeterAttempted) + n(before, MeterNoRoom),
		Established: n(before, MeterEstablished), Closed: n(before, MeterClosed),
		TimedOut: less(n(before, MeterEstablished), n(after, MeterClosed)+flows.Established),
	}
	unanswered := less(n(before, MeterAttempted), n(after, MeterNoPort)+n(after, MeterEstablished)+n(after, MeterRefused)+flows.Waiting)
	t.Failed = n(before, MeterNoRoom) + n(before, MeterNoPort) + n(before, MeterRefused) + unanswered
	return t
}

// less is a-b, and 0 where the two were not read at one moment.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

// Since keeps totals from going back between two readings of one meter.
func (t NATTotals) Since(last NATTotals) NATTotals {
	for _, p := range []struct{ now, was *uint64 }{
		{&t.BytesOut, &last.BytesOut}, {&t.BytesIn, &last.BytesIn}, {&t.PacketsOut, &last.PacketsOut}, {&t.PacketsIn, &last.PacketsIn},
		{&t.Dropped, &last.Dropped}, {&t.Attempted, &last.Attempted}, {&t.Established, &last.Established},
		{&t.Failed, &last.Failed}, {&t.Closed, &last.Closed}, {&t.TimedOut, &last.TimedOut},
	} {
		*p.now = max(*p.now, *p.was)
	}
	return t
}
