package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The messages and attributes of the kernel's nf_tables interface that are counted here.
const (
	nftMsgGetRule  = 7
	nftMsgGetChain = 4
	nftMsgGetSet   = 10
	nftMsgGetElem  = 13

	attrRuleTable, attrRuleChain               = 1, 2
	attrChainTable, attrChainName              = 1, 3
	attrSetTable, attrSetName, attrSetFlags    = 1, 2, 3
	attrElemsTable, attrElemsSet, attrElemList = 1, 2, 3
	attrElemFlags                              = 3

	setAnonymous, setMap       = 0x1, 0x8
	setDynamic                 = 0x20 // the kernel fills it
	elemIntervalEnd            = 0x1
	familyInet, familyIP uint8 = 1, unix.AF_INET
)

// holding counts what a ruleset consists of, by "inet sluice name".
type holding struct {
	rules    map[string]int // by chain
	elements map[string]int // by set or map with a name
	// Sets without a name: how many there are, and the elements of those that are maps.
	// The kernel does not say which rule one belongs to.
	anonymous, anonymousElements int
	// singles of them have one element, and nft may write a comparison in their place.
	singles int
}

func newHolding() holding { return holding{rules: map[string]int{}, elements: map[string]int{}} }

// intended counts what a text says.
func intended(t tableText) holding {
	h := newHolding()
	for key, s := range t.sets {
		h.elements[key] = len(s.elements)
	}
	for key, c := range t.chains {
		h.rules[key] = len(c.rules)
		for _, r := range c.rules {
			h.anonymousOf(unquoted(r))
		}
	}
	return h
}

// anonymousOf counts the sets in a rule: each is in braces.
func (h *holding) anonymousOf(rule string) {
	for {
		before, after, ok := strings.Cut(rule, "{")
		if !ok {
			return
		}
		inner, rest, _ := strings.Cut(after, "}")
		h.anonymous++
		if strings.HasSuffix(strings.TrimSpace(before), "vmap") {
			h.anonymousElements += 1 + strings.Count(inner, ",")
		} else if !strings.Contains(inner, ",") {
			h.singles++
		}
		rule = rest
	}
}

// unquoted leaves out what stands between quotes.
func unquoted(s string) string {
	parts := strings.Split(s, `"`)
	var out strings.Builder
	for i := 0; i < len(parts); i += 2 {
		out.WriteString(parts[i])
	}
	return out.String()
}

// total counts all rules.
func (h holding) total() (n int) {
	for _, rules := range h.rules {
		n += rules
	}
	return n
}

// compare says what the kernel lacks or has too much, "" for nothing.
func (h holding) compare(kernel holding) string {
	if len(h.rules) != len(kernel.rules) {
		return fmt.Sprintf("%d of %d chains", len(kernel.rules), len(h.rules))
	}
	for _, chain := range sortedKeys(h.rules) {
		if got, ok := kernel.rules[chain]; !ok || got != h.rules[chain] {
			return fmt.Sprintf("%d of %d rules of chain %s", got, h.rules[chain], chain)
		}
	}
	if len(h.elements) != len(kernel.elements) {
		return fmt.Sprintf("%d of %d sets", len(kernel.elements), len(h.elements))
	}
	for _, set := range sortedKeys(h.elements) {
		if got, ok := kernel.elements[set]; !ok || got != h.elements[set] {
			return fmt.Sprintf("%d of %d elements of set %s", got, h.elements[set], set)
		}
	}
	if kernel.anonymous > h.anonymous || kernel.anonymous < h.anonymous-h.singles || h.anonymousElements != kernel.anonymousElements {
		return fmt.Sprintf("%d of %d sets without a name, %d of %d elements in their maps",
			kernel.anonymous, h.anonymous, kernel.anonymousElements, h.anonymousElements)
	}
	return ""
}

// verify reads back how many chains, rules and elements the kernel holds of each table of
// a text, and compares. After a change of what was verified before it is enough to count
// what the change touched; nil stands for everything.
func (r *ruleset) verify(goal tableText, touched map[string]bool) error {
	want := intended(goal)
	why := ""
	for range 20 {
		have, err := r.held(goal.tables, want, touched)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("reading back the rules: %w", err)
		}
		if why = want.compare(have); err == nil && why == "" {
			return nil
		}
		time.Sleep(200 * time.Microsecond) // the generation moves just before the rules do
	}
	return fmt.Errorf("the kernel holds %s", why)
}

// chainByChain is up to how many chains are read one by one, and not with all others.
const chainByChain = 64

// held counts what the kernel holds of tables. What a change has not touched counts as
// it was wanted, if it is there.
func (r *ruleset) held(tables map[string]string, want holding, touched map[string]bool) (holding, error) {
	h := newHolding()
	if touched == nil || len(touched) > chainByChain {
		touched = nil
	}
	chains, err := r.ask(nftMsgGetChain, unix.NLM_F_DUMP)
	if err != nil {
		return h, err
	}
	for _, m := range chains {
		k, ours := keyOf(tables, m, attrChainTable, attrChainName)
		if !ours {
			continue
		}
		h.rules[k] = 0
		if touched != nil && !touched[k] {
			h.rules[k] = want.rules[k]
		} else if touched != nil {
			if err := r.countRules(&h, tables, m); err != nil {
				return h, err
			}
		}
	}
	if touched == nil {
		if err := r.countRules(&h, tables, nil); err != nil {
			return h, err
		}
	}
	sets, err := r.ask(nftMsgGetSet, unix.NLM_F_DUMP)
	if err != nil {
		return h, err
	}
	for _, m := range sets {
		k, ours := keyOf(tables, m, attrSetTable, attrSetName)
		if n, named := want.elements[k]; ours && named && touched != nil && !touched[k] {
			h.elements[k] = n
		} else if ours {
			if err := r.countSet(&h, k, m); err != nil {
				return h, err
			}
		}
	}
	return h, nil
}

// countRules counts the rules of one chain, or of all.
func (r *ruleset) countRules(h *holding, tables map[string]string, chain []byte) error {
	family, attrs := uint8(unix.AF_UNSPEC), []*nl.RtAttr(nil)
	if chain != nil {
		family = chain[0]
		attrs = []*nl.RtAttr{
			nl.NewRtAttr(attrRuleTable, nl.ZeroTerminated(textAttribute(chain, attrChainTable))),
			nl.NewRtAttr(attrRuleChain, nl.ZeroTerminated(textAttribute(chain, attrChainName))),
		}
	}
	rules, err := r.askOf(family, nftMsgGetRule, unix.NLM_F_DUMP, attrs...)
	for _, m := range rules {
		if k, ours := keyOf(tables, m, attrRuleTable, attrRuleChain); ours {
			h.rules[k]++
		}
	}
	return err
}

// keyOf names what a message is about, and says whether its table is one of those.
func keyOf(tables map[string]string, m []byte, table, name uint16) (string, bool) {
	t := textAttribute(m, table)
	family, ok := tables[t]
	if !ok || familyOf(family) != m[0] {
		return "", false
	}
	return family + " " + t + " " + textAttribute(m, name), true
}

func (r *ruleset) countSet(h *holding, key string, m []byte) error {
	flags := uint32(0)
	if v, ok := attribute(m, attrSetFlags); ok && len(v) == 4 {
		flags = binary.BigEndian.Uint32(v)
	}
	if flags&setDynamic != 0 {
		h.elements[key] = 0
		return nil
	}
	anonymous := flags&setAnonymous != 0
	if anonymous {
		h.anonymous++
		if flags&setMap == 0 {
			return nil
		}
	}
	n, err := r.elements(m[0], textAttribute(m, attrSetTable), textAttribute(m, attrSetName))
	if anonymous {
		h.anonymousElements += n
	} else {
		h.elements[key] = n
	}
	return err
}

// elements counts what a set holds; an interval is two entries, and counts once.
func (r *ruleset) elements(family uint8, table, set string) (int, error) {
	msgs, err := r.askOf(family, nftMsgGetElem, unix.NLM_F_DUMP,
		nl.NewRtAttr(attrElemsTable, nl.ZeroTerminated(table)), nl.NewRtAttr(attrElemsSet, nl.ZeroTerminated(set)))
	n := 0
	for _, m := range msgs {
		list, _ := attribute(m, attrElemList)
		entries, parseErr := nl.ParseRouteAttr(list)
		err = errors.Join(err, parseErr)
		for _, e := range entries {
			if !isIntervalEnd(e.Value) {
				n++
			}
		}
	}
	return n, err
}

func isIntervalEnd(element []byte) bool {
	attrs, err := nl.ParseRouteAttr(element)
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK == attrElemFlags && len(a.Value) == 4 {
			return binary.BigEndian.Uint32(a.Value)&elemIntervalEnd != 0
		}
	}
	return false
}

func familyOf(name string) uint8 {
	if name == "ip" {
		return familyIP
	}
	return familyInet
}

func textAttribute(m []byte, kind uint16) string {
	v, _ := attribute(m, kind)
	return string(bytes.TrimRight(v, "\x00"))
}
