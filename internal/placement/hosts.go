package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

const (
	// reservedMiB is what a new member is taken to need: several times what an idle one has.
	// Its size is the most that it may have, which few have at the same time.
	reservedMiB = 32
	// A host keeps this share of its memory free, and at least so much.
	spareShare = 0.05
	spareMiB   = 128
	// busyLoad is how many runnable threads for each CPU make a host the last choice.
	busyLoad = 2
	// retryAfter is when a host that was full may have room again.
	retryAfter = 30 * time.Second
)

// Occupancy is what members have of a host already.
type Occupancy struct {
	Members   int // all of them
	OfGateway int // those of the gateway that is to get another
	Starting  int // those that are not up yet, and so not seen in its load
}

// ChooseHost returns the host for a gateway's next member: of those that are connected and
// have room the one with the fewest members of that gateway, one that is not busy first,
// then the one with the fewest members, then by name.
func ChooseHost(hosts []core.Host, on func(host string) Occupancy) (string, error) {
	type candidate struct {
		name string
		busy bool
		Occupancy
	}
	var free []candidate
	var full []string
	for _, h := range hosts {
		if !h.Connected {
			continue
		}
		o := on(h.Name)
		if why := shortage(h.Load, o); why != "" {
			full = append(full, fmt.Sprintf("host %s %s", h.Name, why))
			continue
		}
		free = append(free, candidate{h.Name, h.Load.Load > busyLoad*float64(max(h.Load.CPUs, 1)), o})
	}
	if len(free) == 0 {
		return "", noHost(full)
	}
	best := slices.MinFunc(free, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.OfGateway, b.OfGateway), compareBool(a.busy, b.busy), cmp.Compare(a.Members, b.Members), cmp.Compare(a.name, b.name))
	})
	return best.name, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// shortage says why a host has no room for another member, or "". One that does not tell its
// load has room.
func shortage(l core.HostLoad, o Occupancy) string {
	if l.MemoryMiB == 0 {
		return ""
	}
	spare := max(int64(spareShare*float64(l.MemoryMiB)), spareMiB)
	if need := spare + reservedMiB*int64(1+o.Starting); l.AvailableMiB < need {
		return fmt.Sprintf("has %d MiB of %d MiB of memory available, and takes a member only with %d MiB", l.AvailableMiB, l.MemoryMiB, need)
	}
	if reserved := reservedMiB * int64(1+o.Members); reserved > l.MemoryMiB-spare {
		return fmt.Sprintf("has %d members, with one more their reservations of %d MiB would exceed its memory of %d MiB", o.Members, reservedMiB, l.MemoryMiB)
	}
	return ""
}

func noHost(full []string) error {
	if len(full) == 0 {
		return errs.New(errs.Unavailable, "no host is connected to the service").
			WithHint("start one with \"sluice host\", or look at \"sluice get hosts\"")
	}
	return errs.New(errs.Exhausted, "no host has room for another member: %s", strings.Join(full, "; ")).
		WithRetryAfter(retryAfter).WithHint("free memory there, pause a gateway, or add a host")
}
