package postgres

import (
	"sync"

	"github.com/apache/arrow-go/v18/arrow/memory"
)

// maxSpares is how many slices a column keeps for later: of a stream's three batches
// (being filled, waiting, with the consumer) all can be given back before the next is begun.
const maxSpares = 3

// spares lends out a column's slices as buffers and takes them back when the last
// reference to a batch is released, so that a long result needs no more memory than a
// short one. A slice that never comes back is the garbage collector's. Each column of
// each query has its own: nothing passes from one query to another.
type spares[T any] struct {
	mu   sync.Mutex // batches are released by any goroutine
	free [][]T
	last int // the length that the latest batch had
}

// take returns an empty slice to fill.
func (s *spares[T]) take() []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := len(s.free); n > 0; n = len(s.free) {
		vals := s.free[n-1]
		s.free[n-1], s.free = nil, s.free[:n-1]
		if !s.oversize(vals) {
			return vals
		}
	}
	return make([]T, 0, max(minCapacity, s.last+s.last/8))
}

// oversize reports whether a slice has room for far more than the latest batch took:
// one large value must not be paid for until the end. mu is held.
func (s *spares[T]) oversize(vals []T) bool { return cap(vals) > 2*s.last+16*minCapacity }

// lend makes a buffer of vals, which are the column's again once it is released.
func (s *spares[T]) lend(vals []T, bytes func([]T) []byte) *memory.Buffer {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = len(vals)
	return memory.NewBufferWithAllocator(bytes(vals), &loan[T]{memory.DefaultAllocator, s, vals})
}

func (s *spares[T]) giveBack(vals []T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cap(vals) > 0 && len(s.free) < maxSpares && !s.oversize(vals) {
		s.free = append(s.free, vals[:0])
	}
}

// loan is the allocator of one buffer, which calls Free with the last reference.
type loan[T any] struct {
	memory.Allocator
	from *spares[T]
	vals []T
}

func (l *loan[T]) Free([]byte) {
	l.from.giveBack(l.vals)
	l.vals = nil
}

func sameBytes(b []byte) []byte { return b }
