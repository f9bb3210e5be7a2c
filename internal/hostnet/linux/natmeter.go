package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The messages and attributes that are read here: named counters of nf_tables, and the
// flows and statistics of connection tracking.
const (
	nftMsgGetObject                            = 19
	attrObjectTable, attrObjectName            = 1, 2
	attrObjectData                             = 4
	attrCounterBytes, attrCounterPackets       = 1, 2
	ctMsgGet, ctMsgGetCPUStats                 = 1, 4
	attrCTReply, attrCTMark                    = 2, 8
	attrTupleIP, attrTupleProto                = 1, 2
	attrIPv4Dst                                = 2
	attrProtoNum, attrProtoDstPort             = 1, 3
	attrStatsInsertFailed, attrStatsDrop       = 9, 10
	meterRest                                  = 100 // times what a reading takes lie between two
	trackingMaxKey                             = "netfilter/nf_conntrack_max"
	trackingCountKey                           = "netfilter/nf_conntrack_count"
	protoTCP, protoUDP                   uint8 = unix.IPPROTO_TCP, unix.IPPROTO_UDP
)

// natMeter reads what a NAT gateway did: the counters of its meter, and one listing of
// its flows, which says how many there are and which ports they hold. Nothing is done per
// flow or packet outside of the kernel.
type natMeter struct {
	mu     sync.Mutex
	at     *space
	socket *nl.SocketHandle // nil once closed
	last   natReading
	took   time.Duration
}

// natReading is one look at a NAT gateway.
type natReading struct {
	at     time.Time
	totals policy.NATTotals
	flows  uint64
	max    uint64 // flows that the kernel tracks at the most
	ports  map[portHold]*portSet
}

// portHold is an address and a protocol: each has ports of its own.
type portHold struct {
	address  netip.Addr
	protocol uint8
}

// portSet is a set of ports.
type portSet [1024]uint64

func (p *portSet) add(port uint16) { p[port/64] |= 1 << (port % 64) }

func (p *portSet) len() (n int) {
	for _, w := range p {
		n += bits.OnesCount64(w)
	}
	return n
}

func newNATMeter(at *space) (*natMeter, error) {
	s, err := netfilterSocket(at)
	if err != nil {
		return nil, fmt.Errorf("opening the meter of %s: %w", at.path, err)
	}
	return &natMeter{at: at, socket: s}, nil
}

func (m *natMeter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.socket != nil {
		m.socket.Close()
		m.socket = nil
	}
}

// ensure makes the meter's table, unless it is there. It goes on counting when the rules
// are replaced, and when this process is.
func (m *natMeter) ensure(ctx context.Context, rules *ruleset) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	have, err := m.counters()
	if err != nil {
		return err
	}
	missing := slices.ContainsFunc(policy.NATMeterCounters(insideName, outsideName), func(name string) bool {
		_, ok := have[name]
		return !ok
	})
	if !missing {
		return nil
	}
	text, err := policy.CompileNATMeter(insideName, outsideName)
	if err != nil {
		return err
	}
	if err := rules.transact(ctx, text, true); err != nil {
		return fmt.Errorf("making the meter: %w", err)
	}
	m.last, m.took = natReading{}, 0
	return nil
}

// read looks at the NAT gateway, or gives what it saw the last time if looking again so
// soon would cost more than 1 % of a CPU.
func (m *natMeter) read() (natReading, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.socket == nil {
		return natReading{}, errMeterClosed
	}
	if time.Since(m.last.at) < meterRest*m.took {
		return m.last, nil
	}
	begun := time.Now()
	r, err := m.look()
	if err != nil {
		return natReading{}, err
	}
	r.totals = r.totals.Since(m.last.totals)
	r.at, m.took = time.Now(), time.Since(begun)
	m.last = r
	return r, nil
}

var errMeterClosed = errors.New("the NAT gateway is gone")

func (m *natMeter) look() (r natReading, err error) {
	r.ports = map[portHold]*portSet{}
	before, err := m.counts()
	if err != nil {
		return r, err
	}
	var flows policy.NATFlows
	count := func(e flowEntry) {
		flows.Add(e.mark)
		r.flows++
		if e.protocol != protoTCP && e.protocol != protoUDP {
			return
		}
		key := portHold{netip.AddrFrom4(e.address), e.protocol}
		if r.ports[key] == nil {
			r.ports[key] = new(portSet)
		}
		r.ports[key].add(e.port)
	}
	// The kernel walks its whole table for a list, 10 ms of it mostly empty: not for nothing.
	if tracked, err := m.tracking(trackingCountKey); err != nil {
		return r, err
	} else if tracked > 0 {
		if err := listFlows(m.socket, count); err != nil {
			return r, fmt.Errorf("listing the flows: %w", err)
		}
	}
	after, err := m.counts()
	if err != nil {
		return r, err
	}
	r.totals = policy.NATAccount(before, flows, after)
	r.max, err = m.tracking(trackingMaxKey)
	return r, err
}

// tracking reads a number of the namespace's connection tracking.
func (m *natMeter) tracking(key string) (n uint64, err error) {
	err = m.at.do(func() error {
		text, err := readSysctl(key)
		if err == nil {
			n, err = strconv.ParseUint(text, 10, 64)
		}
		return err
	})
	return n, err
}

// counts are the meter's counters and what the kernel's statistics add.
func (m *natMeter) counts() (policy.NATCounts, error) {
	out, err := m.counters()
	if err != nil {
		return nil, err
	}
	var noPort, dropped uint64
	req := request(m.socket, unix.NFNL_SUBSYS_CTNETLINK<<8|ctMsgGetCPUStats, unix.AF_UNSPEC)
	cpus, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("reading the statistics of connection tracking: %w", err)
	}
	for _, c := range cpus {
		noPort += number(c, attrStatsInsertFailed)
		dropped += number(c, attrStatsDrop)
	}
	out[policy.MeterNoPort] = policy.NATCount{Packets: noPort}
	out[policy.MeterNoRoom] = policy.NATCount{Packets: dropped - min(noPort, dropped)}
	return out, nil
}

func (m *natMeter) counters() (policy.NATCounts, error) {
	if m.socket == nil {
		return nil, errMeterClosed
	}
	return namedCounters(m.socket, policy.NATMeterTable)
}

// namedCounters reads the named counters of a table of family ip.
func namedCounters(s *nl.SocketHandle, table string) (map[string]policy.NATCount, error) {
	req := request(s, unix.NFNL_SUBSYS_NFTABLES<<8|nftMsgGetObject, familyIP)
	req.AddData(nl.NewRtAttr(attrObjectTable, nl.ZeroTerminated(table)))
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("reading the counters of table %s: %w", table, err)
	}
	out := map[string]policy.NATCount{}
	for _, msg := range msgs {
		data, ok := attribute(msg, attrObjectData)
		if !ok || textAttribute(msg, attrObjectTable) != table {
			continue
		}
		var c policy.NATCount
		walk(data, func(kind uint16, v []byte) {
			switch {
			case kind == attrCounterBytes && len(v) == 8:
				c.Bytes = binary.BigEndian.Uint64(v)
			case kind == attrCounterPackets && len(v) == 8:
				c.Packets = binary.BigEndian.Uint64(v)
			}
		})
		out[textAttribute(msg, attrObjectName)] = c
	}
	return out, nil
}

// flowEntry is what the meter wants to know of a flow: the address and port that it
// leaves from, which are where its replies go to.
type flowEntry struct {
	address  [4]byte
	port     uint16
	protocol uint8
	mark     uint32
}

// listFlows calls f for each IPv4 flow of the socket's namespace.
func listFlows(s *nl.SocketHandle, f func(flowEntry)) error {
	req := request(s, unix.NFNL_SUBSYS_CTNETLINK<<8|ctMsgGet, familyIP)
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		if len(msg) > nl.SizeofNfgenmsg {
			f(readFlow(msg[nl.SizeofNfgenmsg:]))
		}
		return true
	})
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil // flows came and went: what was listed is as good as another list
	}
	return err
}

func readFlow(attrs []byte) (e flowEntry) {
	walk(attrs, func(kind uint16, v []byte) {
		switch {
		case kind == attrCTMark && len(v) == 4:
			e.mark = binary.BigEndian.Uint32(v)
		case kind == attrCTReply:
			walk(v, func(kind uint16, v []byte) { e.tuple(kind, v) })
		}
	})
	return e
}

func (e *flowEntry) tuple(part uint16, v []byte) {
	walk(v, func(kind uint16, v []byte) {
		switch {
		case part == attrTupleIP && kind == attrIPv4Dst && len(v) == 4:
			e.address = [4]byte(v)
		case part == attrTupleProto && kind == attrProtoNum && len(v) == 1:
			e.protocol = v[0]
		case part == attrTupleProto && kind == attrProtoDstPort && len(v) == 2:
			e.port = binary.BigEndian.Uint16(v)
		}
	})
}

// walk calls f for each netlink attribute of a message, without copying it.
func walk(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&nl.NLA_TYPE_MASK, b[4:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

func number(msg []byte, kind uint16) uint64 {
	if v, ok := attribute(msg, kind); ok && len(v) == 4 {
		return uint64(binary.BigEndian.Uint32(v))
	}
	return 0
}

func request(s *nl.SocketHandle, msg int, family uint8) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(msg, unix.NLM_F_DUMP)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: s}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family})
	return req
}

// report gives the ports of each address, those without any included.
func (r natReading) report(g *natView) []core.NATPorts {
	var out []core.NATPorts
	for _, a := range g.sources {
		name := a.String()
		if a == g.transit {
			name = "host"
		}
		for _, p := range []struct {
			number uint8
			name   core.Protocol
		}{{protoTCP, core.ProtocolTCP}, {protoUDP, core.ProtocolUDP}} {
			used := 0
			if set := r.ports[portHold{a, p.number}]; set != nil {
				used = set.len()
			}
			out = append(out, core.NATPorts{Address: name, Protocol: p.name, Used: used, Of: policy.NATPorts})
		}
	}
	return out
}
