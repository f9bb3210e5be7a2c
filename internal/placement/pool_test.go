package placement

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/testseed"
)

// plain is a Pool without a structure: the address's state in a map, found one by one.
type plain struct {
	first, last netip.Addr
	taken       map[netip.Addr]bool
	until       map[netip.Addr]time.Time
}

func (p *plain) next(after netip.Addr, now time.Time) (netip.Addr, bool) {
	for a, t := range p.until {
		if !now.Before(t) {
			delete(p.until, a)
		}
	}
	free := func(a netip.Addr) bool { _, rests := p.until[a]; return !p.taken[a] && !rests }
	find := func(from netip.Addr) (netip.Addr, bool) {
		for a := from; !p.last.Less(a); a = a.Next() {
			if free(a) {
				return a, true
			}
		}
		return netip.Addr{}, false
	}
	if after.IsValid() && !after.Less(p.first) && !p.last.Less(after) {
		if a, ok := find(after.Next()); ok {
			return a, true
		}
	}
	return find(p.first)
}

// TestPoolIsAsPlainAsAMap does the same at random to a pool and to a map, for ranges of
// every depth and with ends that fall anywhere in a word.
func TestPoolIsAsPlainAsAMap(t *testing.T) {
	t.Parallel()
	seed := testseed.Of(t)
	random := rand.New(rand.NewPCG(seed, 1))
	for _, size := range []int{1, 2, 3, 63, 64, 65, 127, 300, 4096, 4097, 5000} {
		first := netip.MustParseAddr("10.0.3.4")
		pool := NewPool(first, offset(first, size-1))
		model := &plain{first, offset(first, size-1), map[netip.Addr]bool{}, map[netip.Addr]time.Time{}}
		now := time.Unix(1000, 0)
		for step := range 3000 {
			a := offset(first, random.IntN(size+2)-1)
			now = now.Add(time.Duration(random.IntN(3)) * time.Second)
			got, ok := pool.Next(a, now)
			want, wantOK := model.next(a, now)
			if got != want || ok != wantOK {
				t.Fatalf("seed %d, %d addresses, step %d: after %s got %v %v, want %v %v", seed, size, step, a, got, ok, want, wantOK)
			}
			switch act := random.IntN(8); {
			case act < 5 && ok:
				if !pool.Take(got) || pool.Take(got) {
					t.Fatalf("seed %d: %s was not taken once", seed, got)
				}
				model.taken[got] = true
			case act == 5 && model.taken[a]:
				pool.Release(a)
				delete(model.taken, a)
			case model.taken[a]:
				until := now.Add(time.Duration(random.IntN(20)) * time.Second)
				pool.Rest(a, until)
				delete(model.taken, a)
				model.until[a] = until
			}
			if pool.Held() != len(model.taken) {
				t.Fatalf("seed %d: %d are held, want %d", seed, pool.Held(), len(model.taken))
			}
		}
	}
}

func offset(a netip.Addr, by int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(int64(number(a))+int64(by)))
	return netip.AddrFrom4(b)
}

// BenchmarkPool finds, takes and gives back an address of a /16 of which many are taken,
// the free ones as far away as they can be.
func BenchmarkPool(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000, 60_000} {
		b.Run(fmt.Sprintf("leases=%d", n), func(b *testing.B) {
			subnet, now := netip.MustParsePrefix("10.20.0.0/16"), time.Now()
			pool := SubnetPool(subnet)
			first := FirstAddress(subnet)
			for i := range n {
				pool.Take(offset(first, i))
			}
			for b.Loop() {
				a, ok := pool.Next(first, now)
				if !ok || !pool.Take(a) {
					b.Fatal("no address")
				}
				pool.Release(a)
			}
		})
	}
}
