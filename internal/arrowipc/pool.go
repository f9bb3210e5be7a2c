package arrowipc

import (
	"math/bits"
	"sync"
)

// The sizes that a Pool keeps are the powers of two in this range, as exponents;
// others come from and go to the garbage collector.
const (
	poolMin = 12 // 4 KiB
	poolMax = 24 // 16 MiB
)

// Pool lends memory for bodies to any number of readers. Its zero value is ready; a
// nil Pool allocates afresh each time.
type Pool struct {
	sizes [poolMax - poolMin + 1]sync.Pool
}

// get returns n bytes of undefined content.
func (p *Pool) get(n int) []byte {
	if p == nil || n > 1<<poolMax {
		return make([]byte, n)
	}
	class := max(bits.Len(uint(n-1)), poolMin)
	if b, ok := p.sizes[class-poolMin].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, 1<<class)
}

// Put takes back the body of a frame that was not released.
func (p *Pool) Put(b []byte) {
	if p == nil || cap(b) == 0 || cap(b) > 1<<poolMax {
		return
	}
	class := bits.Len(uint(cap(b))) - 1
	if cap(b) != 1<<class || class < poolMin {
		return
	}
	b = b[:cap(b)]
	p.sizes[class-poolMin].Put(&b)
}
