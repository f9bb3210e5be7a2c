package placement

import (
	"container/heap"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"time"
)

// Pool knows which addresses of a range are free: those that are neither taken nor at
// rest. Finding, taking and giving back cost a time that grows with the logarithm of the
// range, however many are taken. It is an index of what a store knows, which has the last
// word. It is not safe for use by several goroutines at once.
type Pool struct {
	first uint32
	size  int
	// full has a bit for each address, set while it is not free; then a bit for each word
	// of that, set while all of its bits are; and so on up to one word.
	full    [][]uint64
	held    int
	resting rests
}

// NewPool makes a pool of the IPv4 addresses from first to last, all free.
func NewPool(first, last netip.Addr) *Pool {
	p := &Pool{first: number(first), size: int(number(last)-number(first)) + 1}
	for n := p.size; ; n = len(p.full[len(p.full)-1]) {
		words := make([]uint64, (n+63)/64)
		if rest := n % 64; rest != 0 { // behind the end nothing is free
			words[len(words)-1] = ^uint64(0) << rest
		}
		p.full = append(p.full, words)
		if len(words) == 1 {
			return p
		}
	}
}

// SubnetPool makes a pool of the addresses of a subnet that may be leased.
func SubnetPool(subnet netip.Prefix) *Pool { return NewPool(usable(subnet)) }

func number(a netip.Addr) uint32 {
	b := a.Unmap().As4()
	return binary.BigEndian.Uint32(b[:])
}

// index is where an address stands in the pool, and whether it does.
func (p *Pool) index(a netip.Addr) (int, bool) {
	if !a.Unmap().Is4() {
		return 0, false
	}
	i := int64(number(a)) - int64(p.first)
	return int(i), i >= 0 && i < int64(p.size)
}

func (p *Pool) address(i int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], p.first+uint32(i)) // i < size, and the last address is one
	return netip.AddrFrom4(b)
}

// Held returns how many addresses are taken, at rest ones apart.
func (p *Pool) Held() int { return p.held }

// Take takes an address. It is false for one that is not free, or not of the pool.
func (p *Pool) Take(a netip.Addr) bool {
	i, ok := p.index(a)
	if !ok || p.isFull(i) {
		return false
	}
	p.fill(i)
	p.held++
	return true
}

// Release gives back an address that was taken: it is free at once.
func (p *Pool) Release(a netip.Addr) {
	if i, ok := p.index(a); ok && p.isFull(i) {
		p.held--
		p.clear(i)
	}
}

// Rest gives back an address that was taken, and keeps it from being found before a time.
func (p *Pool) Rest(a netip.Addr, until time.Time) {
	if i, ok := p.index(a); ok && p.isFull(i) {
		p.held--
		heap.Push(&p.resting, rest{i, until})
	}
}

// Next returns the first free address after the one given, round to the start again;
// the first of all if the one given is not of the pool. It does not take it.
func (p *Pool) Next(after netip.Addr, now time.Time) (netip.Addr, bool) {
	for len(p.resting) > 0 && !now.Before(p.resting[0].until) {
		p.clear(heap.Pop(&p.resting).(rest).index)
	}
	start := 0
	if i, ok := p.index(after); ok {
		start = i + 1
	}
	i, ok := p.free(start)
	if !ok {
		i, ok = p.free(0)
	}
	if !ok {
		return netip.Addr{}, false
	}
	return p.address(i), true
}

// Awaited returns how many addresses are at rest, and when the first of them is free.
func (p *Pool) Awaited() (n int, first time.Time) {
	if len(p.resting) == 0 {
		return 0, time.Time{}
	}
	return len(p.resting), p.resting[0].until
}

func (p *Pool) isFull(i int) bool { return p.full[0][i/64]&(1<<(i%64)) != 0 }

func (p *Pool) fill(i int) {
	for _, words := range p.full {
		words[i/64] |= 1 << (i % 64)
		if words[i/64] != ^uint64(0) {
			return
		}
		i /= 64
	}
}

func (p *Pool) clear(i int) {
	for _, words := range p.full {
		was := words[i/64]
		words[i/64] &^= 1 << (i % 64)
		if was != ^uint64(0) {
			return // above, it did not count as full
		}
		i /= 64
	}
}

// free finds the lowest free index from one on: up to a word that has a free bit behind
// where it stands, then down again.
func (p *Pool) free(from int) (int, bool) {
	for level, i := 0, from; level < len(p.full); level, i = level+1, i/64+1 {
		words := p.full[level]
		if i/64 >= len(words) {
			return 0, false
		}
		open := ^words[i/64] & (^uint64(0) << (i % 64))
		if open == 0 {
			continue
		}
		i = i/64*64 + bits.TrailingZeros64(open)
		for ; level > 0; level-- {
			i = i*64 + bits.TrailingZeros64(^p.full[level-1][i])
		}
		return i, true
	}
	return 0, false
}

// rest is an address that nobody has and nobody may have yet.
type rest struct {
	index int
	until time.Time
}

// rests is a heap, the first to end on top.
type rests []rest

func (r rests) Len() int           { return len(r) }
func (r rests) Less(i, j int) bool { return r[i].until.Before(r[j].until) }
func (r rests) Swap(i, j int)      { r[i], r[j] = r[j], r[i] }

// Push implements heap.Interface.
func (r *rests) Push(x any) { *r = append(*r, x.(rest)) }

// Pop implements heap.Interface.
func (r *rests) Pop() any {
	last := (*r)[len(*r)-1]
	*r = (*r)[:len(*r)-1]
	return last
}
