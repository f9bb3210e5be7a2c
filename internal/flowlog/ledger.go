package flowlog

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
)

// maxPending bounds the entries that wait for a flush.
const maxPending = 200_000

// maxDenied bounds the flows denied between two flushes that are told apart.
const maxDenied = 16_384

// missedSweeps is after how many readings of all flows one that is not among them any
// more counts as ended, though the kernel did not say so.
const missedSweeps = 2

// flowKey identifies a flow in a log for ever: no two with the same five-tuple begin in
// one millisecond.
type flowKey struct {
	FiveTuple
	Direction core.Direction
	Start     int64 // Unix milliseconds
}

// flowState is what the log says about a flow that has not ended.
type flowState struct {
	Rule           string
	Sent, Received Counters // as written
	Last           int64    `json:",omitempty"` // Unix milliseconds of the last entry that goes on
	missed         int
	seen           bool
}

// decision is what a network security group said about a flow that it allowed.
type decision struct {
	nsg, rule string
	direction core.Direction
}

// ledger keeps one network security group's flows and writes its files. It is not safe
// for use by several goroutines.
type ledger struct {
	nsg      string
	record   Record // tenant and network of each
	settings core.FlowLog
	files    *files
	due      time.Time // of the next reading of all flows

	flows   map[flowKey]*flowState
	pending map[string][]Tuple // by rule
	waiting int
	denied  map[deniedKey]*Tuple
	passed  map[deniedKey]*attempt
	lost    Lost
}

// attempt is a flow that a rule allowed and another network security group then denied,
// between two flushes.
type attempt struct {
	Tuple           // its end, with what the rule let pass
	first time.Time // when it began
}

type deniedKey struct {
	FiveTuple
	direction core.Direction
	rule      string
}

// openLedger continues what an earlier process wrote in dir.
func openLedger(dir, nsg string, record Record, now time.Time) (*ledger, error) {
	f, err := openFiles(dir)
	if err != nil {
		return nil, err
	}
	l := &ledger{
		nsg: nsg, record: record, files: f, due: now,
		flows: map[flowKey]*flowState{}, pending: map[string][]Tuple{}, denied: map[deniedKey]*Tuple{}, passed: map[deniedKey]*attempt{},
	}
	return l, l.restore()
}

// set changes what the administrator decides.
func (l *ledger) set(s core.FlowLog) {
	l.settings = s.WithDefaults()
	l.files.keep = time.Duration(l.settings.RetentionDays) * 24 * time.Hour
	l.files.maxBytes = int64(l.settings.MaxMiB) << 20
}

func keyOf(c conn, d core.Direction) flowKey {
	return flowKey{FiveTuple: c.FiveTuple, Direction: d, Start: c.start.UnixMilli()}
}

// begin finds a flow, or has it begin.
func (l *ledger) begin(k flowKey, rule string) (s *flowState, fresh bool) {
	if s = l.flows[k]; s != nil {
		return s, false
	}
	s = &flowState{Rule: rule}
	l.flows[k] = s
	l.write(rule, Tuple{Time: time.UnixMilli(k.Start), FiveTuple: k.FiveTuple, Direction: k.Direction, State: Begin})
	return s, true
}

// live notes a flow that the kernel tracks.
func (l *ledger) live(now time.Time, c conn, d decision) {
	k := keyOf(c, d.direction)
	s, fresh := l.begin(k, d.rule)
	s.seen = true
	if fresh {
		return
	}
	sent, received := c.sent.minus(s.Sent), c.received.minus(s.Received)
	if c.closed && sent == (Counters{}) && received == (Counters{}) {
		return // over, though the kernel keeps it a while
	}
	l.write(s.Rule, Tuple{Time: now, FiveTuple: k.FiveTuple, Direction: k.Direction, State: Continue, Sent: sent, Received: received})
	s.Sent, s.Received, s.Last = c.sent, c.received, now.UnixMilli()
}

// end notes the end of a flow.
func (l *ledger) end(c conn, d decision) {
	k := keyOf(c, d.direction)
	s, _ := l.begin(k, d.rule)
	stop := c.stop // the kernel's, that of the time-out: entries of a flow stand in their order
	if last := time.UnixMilli(max(s.Last, k.Start)); stop.Before(last) {
		stop = last
	}
	l.write(s.Rule, Tuple{
		Time: stop, FiveTuple: k.FiveTuple, Direction: k.Direction, State: End,
		Sent: c.sent.minus(s.Sent), Received: c.received.minus(s.Received),
	})
	delete(l.flows, k)
}

// swept ends the flows that were not seen; whole says that all flows were read.
func (l *ledger) swept(now time.Time, whole bool) {
	l.due = now.Add(time.Duration(l.settings.Interval))
	for k, s := range l.flows {
		switch {
		case s.seen:
			s.seen, s.missed = false, 0
		case whole:
			s.missed++
		}
		if s.missed >= missedSweeps {
			l.write(s.Rule, Tuple{Time: now, FiveTuple: k.FiveTuple, Direction: k.Direction, State: End})
			l.lost.UnseenEnds++
			delete(l.flows, k)
		}
	}
}

// deny notes a packet that a rule denied.
func (l *ledger) deny(now time.Time, f FiveTuple, d decision, bytes uint64) {
	k := deniedKey{f, d.direction, d.rule}
	t := l.denied[k]
	if t == nil {
		if len(l.denied) >= maxDenied {
			l.lost.DeniedPackets++
			return
		}
		t = &Tuple{Time: now, FiveTuple: f, Direction: d.direction, State: Deny}
		l.denied[k] = t
	}
	t.Sent.add(Counters{1, bytes})
}

// pass notes a packet that a rule allowed and another network security group denied: the
// flow began here, and had no future.
func (l *ledger) pass(now time.Time, f FiveTuple, d decision, bytes uint64) {
	k := deniedKey{f, d.direction, d.rule}
	a := l.passed[k]
	if a == nil {
		if len(l.passed) >= maxDenied {
			l.lost.Entries += 2
			return
		}
		a = &attempt{Tuple{FiveTuple: f, Direction: d.direction, State: End}, now}
		l.passed[k] = a
	}
	a.Time = now
	a.Sent.add(Counters{1, bytes})
}

func (l *ledger) write(rule string, t Tuple) {
	if l.waiting >= maxPending {
		l.lost.Entries++
		return
	}
	l.pending[rule] = append(l.pending[rule], t)
	l.waiting++
}

// gather has what was denied until now wait for a flush.
func (l *ledger) gather() {
	for k, t := range l.denied {
		l.write(k.rule, *t)
	}
	clear(l.denied)
	for k, a := range l.passed {
		l.write(k.rule, Tuple{Time: a.first, FiveTuple: a.FiveTuple, Direction: a.Direction, State: Begin})
		l.write(k.rule, a.Tuple)
	}
	clear(l.passed)
}

// flush writes what waits.
func (l *ledger) flush(now time.Time) error {
	if l.waiting == 0 && l.lost == (Lost{}) {
		return nil
	}
	r := l.record
	r.Time, r.Version = now.UTC(), Version
	if l.lost != (Lost{}) {
		r.Lost = &l.lost
	}
	acl := ACL{ACLID: l.nsg}
	for rule, tuples := range l.pending {
		acl.FlowGroups = append(acl.FlowGroups, Group{rule, inOrder(tuples)})
	}
	slices.SortFunc(acl.FlowGroups, func(a, b Group) int { return cmp.Compare(a.Rule, b.Rule) })
	r.FlowRecords.Flows = []ACL{acl}
	before := l.files.at
	err := l.files.append(now, []Record{r})
	if l.files.at != before { // written, whatever failed then
		l.pending, l.waiting, l.lost = map[string][]Tuple{}, 0, Lost{}
	}
	if err != nil {
		return fmt.Errorf("writing the flow log of network security group %s: %w", l.nsg, err)
	}
	return nil
}

// inOrder writes entries by their times; those of one flow stay as they came.
func inOrder(list []Tuple) []string {
	slices.SortStableFunc(list, func(a, b Tuple) int { return a.Time.Compare(b.Time) })
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = t.String()
	}
	return out
}

// checkpoint is the state of the flows as of a position in the log.
type checkpoint struct {
	At            position    `json:"at"`
	RetentionDays int         `json:"retentionDays"`
	MaxMiB        int         `json:"maxMiB"`
	Flows         []savedFlow `json:"flows"`
}

type savedFlow struct {
	flowKey
	flowState
}

const stateFile = hidden + "flows"

// save writes the state; nothing may wait for a flush.
func (l *ledger) save() error {
	c := checkpoint{At: l.files.at, RetentionDays: l.settings.RetentionDays, MaxMiB: l.settings.MaxMiB, Flows: make([]savedFlow, 0, len(l.flows))}
	for k, s := range l.flows {
		c.Flows = append(c.Flows, savedFlow{k, *s})
	}
	b, err := json.Marshal(c)
	if err == nil {
		err = replaceFile(filepath.Join(l.files.dir, stateFile), b)
	}
	if err != nil {
		return fmt.Errorf("saving the flows of network security group %s: %w", l.nsg, err)
	}
	return nil
}

// restore reads the state and what was written after it.
func (l *ledger) restore() error {
	b, err := os.ReadFile(filepath.Join(l.files.dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		b, err = []byte("{}"), nil
	}
	if err != nil {
		return err
	}
	var c checkpoint
	if err := json.Unmarshal(b, &c); err != nil {
		c = checkpoint{} // damaged: the log itself tells
	}
	for _, f := range c.Flows {
		l.flows[f.flowKey] = &f.flowState
	}
	records, err := l.files.since(c.At)
	if err != nil {
		return err
	}
	l.replay(records)
	return nil
}

// replay repeats what entries say about the flows.
func (l *ledger) replay(records []Record) {
	type live struct {
		FiveTuple
		core.Direction
	}
	keys := map[live]flowKey{}
	for k := range l.flows {
		keys[live{k.FiveTuple, k.Direction}] = k
	}
	entry := func(rule string, t Tuple) {
		at := live{t.FiveTuple, t.Direction}
		k, known := keys[at]
		switch {
		case t.State == Begin:
			k = flowKey{t.FiveTuple, t.Direction, t.Time.UnixMilli()}
			keys[at], l.flows[k] = k, &flowState{Rule: rule}
		case known && t.State == Continue:
			l.flows[k].Sent.add(t.Sent)
			l.flows[k].Received.add(t.Received)
			l.flows[k].Last = t.Time.UnixMilli()
		case known && t.State == End:
			delete(keys, at)
			delete(l.flows, k)
		}
	}
	for _, r := range records {
		for _, e := range r.entries() {
			entry(e.rule, e.Tuple)
		}
	}
}
