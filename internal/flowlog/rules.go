package flowlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/policy"
)

// Rules are the rules of a virtual network as they were at one time.
type Rules struct {
	// Mark is the number that the ruleset puts on flows. It is not 0.
	Mark uint32
	goal core.GoalVNet // what decides, no more
	dns  []netip.Addr
	text []byte
}

// savedRules is the form of Rules on disk.
type savedRules struct {
	VNet      core.GoalVNet `json:"vnet"`
	Resolvers []netip.Addr  `json:"resolvers"`
}

// NewRules takes from a virtual network what decides about flows. The same rules have
// the same mark in every process.
func NewRules(v core.GoalVNet, resolvers []netip.Addr) (Rules, error) {
	v.NATGateways, v.Endpoints, v.Zones, v.DNS = nil, nil, nil, core.GoalDNS{}
	v.NSGs = slices.Clone(v.NSGs)
	for i := range v.NSGs {
		v.NSGs[i].Revoke = false
		v.NSGs[i].FlowLog = core.FlowLog{Enabled: v.NSGs[i].FlowLog.Enabled}
	}
	text, err := json.Marshal(savedRules{v, resolvers})
	if err != nil {
		return Rules{}, fmt.Errorf("writing down the rules of virtual network %s: %w", v.Name, err)
	}
	h := fnv.New32a()
	_, _ = h.Write(text)
	return Rules{Mark: max(h.Sum32(), 1), goal: v, dns: resolvers, text: text}, nil
}

// judge answers for the flows that began under the same rules.
type judge struct {
	evaluator *policy.Evaluator
	logging   map[string]bool
	groups    map[string]core.NetworkSecurityGroup
	bySource  bool // a rule names source ports
	known     map[question]answer
}

// answer is what the rules say of a flow: who allows it, of those whose log was on, and
// which network security group then denies it, if any.
type answer struct {
	allowed []decision
	denied  string
}

// question is what the answer depends on.
type question struct {
	source, destination netip.Addr
	from, to            uint16
	protocol            uint8
}

// maxKnown bounds the answers that a judge remembers.
const maxKnown = 16_384

func newJudge(v core.GoalVNet, resolvers []netip.Addr) *judge {
	j := &judge{
		evaluator: policy.NewEvaluator(v, resolvers), logging: map[string]bool{},
		groups: map[string]core.NetworkSecurityGroup{}, known: map[question]answer{},
	}
	for _, n := range v.NSGs {
		j.logging[n.Name], j.groups[n.Name] = n.FlowLog.Enabled, n
		j.bySource = j.bySource || slices.ContainsFunc(n.Rules, func(r core.SecurityRule) bool { return len(r.SourcePorts) > 0 })
	}
	return j
}

// passed lists who let a packet pass that a network security group then denied.
func (j *judge) passed(f FiveTuple, denied string) []decision {
	if out := j.answer(f); out.denied == denied {
		return out.allowed
	}
	return nil // it met other rules
}

func (j *judge) answer(f FiveTuple) answer {
	q := question{f.Source, f.Destination, f.SourcePort, f.DestinationPort, f.Protocol}
	if !j.bySource {
		q.from = 0
	}
	out, ok := j.known[q]
	if ok {
		return out
	}
	v := j.evaluator.Evaluate(policy.Flow{
		Source: f.Source, Destination: f.Destination, Protocol: protocolOf(f.Protocol), SourcePort: f.SourcePort, DestinationPort: f.DestinationPort,
	})
	for _, d := range v.Decisions {
		here := decision{d.NSG, d.Rule, d.Direction}
		if d.Access == core.Deny {
			out.denied = d.NSG
		} else if j.logging[d.NSG] && !slices.Contains(out.allowed, here) {
			out.allowed = append(out.allowed, here)
		}
	}
	if len(j.known) >= maxKnown {
		clear(j.known)
	}
	j.known[q] = out
	return out
}

// named gives a rule that the kernel knows by its priority only its name.
func (j *judge) named(r policy.LoggedRule) string {
	if r.Rule != "" || j == nil {
		return r.Rule
	}
	for _, rule := range j.groups[r.NSG].Rules {
		if rule.Priority == r.Priority && rule.Direction == r.Direction {
			return rule.Name
		}
	}
	return "#" + strconv.Itoa(r.Priority)
}

// protocolOf names the protocol as rules do. One that they cannot name is matched by
// those for any.
func protocolOf(number uint8) core.Protocol {
	switch number {
	case 6:
		return core.ProtocolTCP
	case 17:
		return core.ProtocolUDP
	case 1:
		return core.ProtocolICMP
	case 50:
		return core.ProtocolESP
	case 51:
		return core.ProtocolAH
	}
	return core.Protocol(strconv.Itoa(int(number)))
}

// keptRules is how many generations of rules are kept.
const keptRules = 64

// history knows the rules of each mark, across restarts.
type history struct {
	dir    string
	judges map[uint32]*judge // nil: looked for and not there
	order  []uint32
}

func openHistory(dir string) (*history, error) {
	return &history{dir: dir, judges: map[uint32]*judge{}}, os.MkdirAll(dir, 0o750)
}

func (h *history) file(mark uint32) string {
	return filepath.Join(h.dir, fmt.Sprintf("%08x", mark)+extension)
}

// add keeps rules; what flows under them carry the mark of may come then.
func (h *history) add(r Rules) error {
	now := time.Now()
	if os.Chtimes(h.file(r.Mark), now, now) != nil {
		if err := replaceFile(h.file(r.Mark), r.text); err != nil {
			return fmt.Errorf("keeping the rules of virtual network %s: %w", r.goal.Name, err)
		}
	}
	if h.judges[r.Mark] == nil {
		h.keep(r.Mark, newJudge(r.goal, r.dns))
	}
	return h.prune()
}

func (h *history) keep(mark uint32, j *judge) {
	h.judges[mark] = j
	h.order = append(slices.DeleteFunc(h.order, func(m uint32) bool { return m == mark }), mark)
	if len(h.order) > keptRules {
		delete(h.judges, h.order[0])
		h.order = h.order[1:]
	}
}

// judge finds the rules of a mark; nil if nobody knows them any more.
func (h *history) judge(mark uint32) *judge {
	j, ok := h.judges[mark]
	if ok {
		return j
	}
	var saved savedRules
	b, err := os.ReadFile(h.file(mark))
	if err == nil && json.Unmarshal(b, &saved) == nil {
		j = newJudge(saved.VNet, saved.Resolvers)
	}
	h.keep(mark, j)
	return j
}

// prune removes the rules that were not in force for the longest time.
func (h *history) prune() error {
	entries, err := os.ReadDir(h.dir)
	if err != nil || len(entries) <= keptRules {
		return err
	}
	age := func(e os.DirEntry) time.Time {
		if i, err := e.Info(); err == nil {
			return i.ModTime()
		}
		return time.Time{}
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return age(a).Compare(age(b)) })
	var failed []error
	for _, e := range entries[:len(entries)-keptRules] {
		failed = append(failed, os.Remove(filepath.Join(h.dir, e.Name())))
	}
	return errors.Join(failed...)
}
