package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linkGroup is the group of the interfaces in the host's namespace that are NAT gateways',
// of every installation: `ip link show group 8483`. What leaves by one of them is confined by
// the table of the installation that made it, so the others' tables let it pass.
const linkGroup = 8483

// joinGroup comes before the routes that lead to the interface.
func (s *space) joinGroup(l netlink.Link) error {
	if l.Attrs().Group == linkGroup {
		return nil
	}
	if err := s.nl.LinkSetGroup(l, linkGroup); err != nil {
		return fmt.Errorf("group %d of interface %s: %w", linkGroup, l.Attrs().Name, err)
	}
	return nil
}

// The sets of the host's table that tell other installations what was changed: interfaces
// that did not forward, and for how long the host waited before it answered ARP for another.
const (
	openedSet = "opened"
	delaysMap = "delays"
)

// The attributes of elements that are read here.
const (
	attrElemKey, attrElemData = 1, 2
	attrDataValue             = 1
)

// lockTry is how often a lock that is held is tried again.
const lockTry = 5 * time.Millisecond

// alone runs fn while no other installation changes what they share in this namespace. The
// lock is on the namespace itself, which is the one file that they have in common.
func (h *hostSide) alone(ctx context.Context, fn func() error) error {
	fd := int(h.at.file.Fd())
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("locking the host's namespace: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for another installation that changes the host's namespace: %w", ctx.Err())
		case <-time.After(lockTry):
		}
	}
	return errors.Join(fn(), unix.Flock(fd, unix.LOCK_UN))
}

// sharedText writes what this installation changed for others to read.
func (p hostPlan) sharedText(line func(format string, args ...any)) {
	var opened, delays []string
	for _, name := range p.opened {
		opened = append(opened, fmt.Sprintf("%q", name))
	}
	for _, d := range p.delays {
		delays = append(delays, fmt.Sprintf("%q : %d", d.link, d.was))
	}
	line("\tset %s {\n\t\ttype ifname%s\n\t}", openedSet, elementText(opened))
	line("\tmap %s {\n\t\ttype ifname : mark%s\n\t}", delaysMap, elementText(delays))
}

// delay is an interface whose proxy_delay was changed.
type delay struct {
	link string
	was  uint32
}

// others reads what the settings that other installations hold were before the first of
// them changed them. A table without the sets is none of the host's side.
func (h *hostSide) others(own string) (map[string]string, error) {
	tables, err := h.rules.tables()
	if err != nil {
		return nil, fmt.Errorf("listing the host's tables: %w", err)
	}
	was := map[string]string{}
	for _, t := range tables {
		if t == own || !strings.HasPrefix(t, "sluice-") {
			continue
		}
		opened, err := h.rules.byInterface(t, openedSet)
		if err != nil {
			return nil, err
		}
		delays, err := h.rules.byInterface(t, delaysMap)
		if err != nil {
			return nil, err
		}
		for name := range opened {
			was[forwardingKey(name)] = "0"
		}
		for name, value := range delays {
			was[proxyDelayKey(name)] = strconv.FormatUint(uint64(value), 10)
		}
	}
	return was, nil
}

// byInterface reads a set of interfaces, or a map of them to marks, of a table of the family
// ip. One that is not there is empty.
func (r *ruleset) byInterface(table, set string) (map[string]uint32, error) {
	msgs, err := retryDump(func() ([][]byte, error) {
		return r.askOf(familyIP, nftMsgGetElem, unix.NLM_F_DUMP,
			nl.NewRtAttr(attrElemsTable, nl.ZeroTerminated(table)), nl.NewRtAttr(attrElemsSet, nl.ZeroTerminated(set)))
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s of table %s: %w", set, table, err)
	}
	out := map[string]uint32{}
	for _, m := range msgs {
		list, _ := attribute(m, attrElemList)
		walk(list, func(_ uint16, element []byte) {
			name, value := "", uint32(0)
			walk(element, func(kind uint16, data []byte) {
				walk(data, func(what uint16, v []byte) {
					switch {
					case what != attrDataValue:
					case kind == attrElemKey:
						name, _, _ = strings.Cut(string(v), "\x00")
					case kind == attrElemData && len(v) == 4:
						value = binary.NativeEndian.Uint32(v)
					}
				})
			})
			out[name] = value
		})
	}
	return out, nil
}
