package postgres

import (
	"encoding/binary"
	"io"
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	smallBuffer = 8 << 10   // what a connection reads into until a result is long
	largeBuffer = 128 << 10 // what it reads into from then on
	// slack is room behind what was read, so that columns may load whole words.
	slack    = 16
	maxCells = 4096 // of one block: offsets that stay in the processor's first cache

	headerSize = 5 // of a message: its type and its length, which counts itself
)

// wire is the way in of a connection. It reads ahead, and gives the library one message
// at a time; so between two messages the library holds nothing, and rows can be taken
// from here directly. An idle connection has no buffer.
type wire struct {
	src     io.Reader
	front   *pgproto3.Frontend
	buffers *buffers

	in      *buffer // nil while there is nothing unread
	rp, wp  int     // unread is in.bytes[rp:wp]
	left    int     // of the message that the library is reading
	brimful bool    // the last read filled the buffer
}

// buffer is where a connection reads into.
type buffer struct {
	bytes []byte
	cells []uint32 // of a large buffer: see block
}

// buffers lends them out.
type buffers struct{ small, large sync.Pool }

func (b *buffers) get(large bool) *buffer {
	pool, size, cells := &b.small, smallBuffer, 0
	if large {
		pool, size, cells = &b.large, largeBuffer, maxCells
	}
	if in, ok := pool.Get().(*buffer); ok {
		return in
	}
	return &buffer{bytes: make([]byte, size+slack), cells: make([]uint32, cells)}
}

func (b *buffers) put(in *buffer) {
	if len(in.cells) > 0 {
		b.large.Put(in)
	} else {
		b.small.Put(in)
	}
}

// build makes the library's reader; it has the form of pgconn.BuildFrontendFunc.
func (w *wire) build(r io.Reader, to io.Writer) *pgproto3.Frontend {
	w.src, w.front = r, pgproto3.NewFrontend(w, to)
	return w.front
}

// Read gives the library the rest of the present message, or of the next.
func (w *wire) Read(p []byte) (int, error) {
	if w.left == 0 {
		for w.wp-w.rp < headerSize {
			if err := w.fill(); err != nil {
				return 0, err
			}
		}
		w.left = headerSize + w.bodyLen()
	}
	if w.wp == w.rp {
		if len(p) >= smallBuffer { // the middle of a large message
			n, err := w.src.Read(p[:min(len(p), w.left)])
			w.left -= n
			return n, err
		}
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p[:min(len(p), w.left)], w.in.bytes[w.rp:w.wp])
	w.rp, w.left = w.rp+n, w.left-n
	return n, nil
}

// bodyLen is the length of the body of the message at rp. The library finds a wrong
// length by itself.
func (w *wire) bodyLen() int {
	return max(0, int(int32(binary.BigEndian.Uint32(w.in.bytes[w.rp+1:])))-4)
}

// fill reads more behind what is unread, which must leave room in a large buffer.
func (w *wire) fill() error {
	w.makeRoom()
	end := len(w.in.bytes) - slack
	n, err := w.src.Read(w.in.bytes[w.wp:end])
	w.wp += n
	w.brimful = w.wp == end
	if n > 0 {
		return nil // the next read has the same error
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (w *wire) makeRoom() {
	if w.in == nil {
		w.in, w.rp, w.wp, w.brimful = w.buffers.get(false), 0, 0, false
	}
	if w.brimful && !w.isLong() {
		small := w.in
		w.in = w.buffers.get(true)
		w.wp, w.rp = copy(w.in.bytes, small.bytes[w.rp:w.wp]), 0
		w.buffers.put(small)
		return
	}
	w.wp, w.rp = copy(w.in.bytes, w.in.bytes[w.rp:w.wp]), 0
}

// isLong reports whether the result read is a long one.
func (w *wire) isLong() bool { return w.in != nil && len(w.in.cells) > 0 }

// rest gives the buffer back, unless something in it is unread.
func (w *wire) rest() {
	if w.in != nil && w.rp == w.wp {
		w.buffers.put(w.in)
		w.in = nil
	}
}

// isEmpty reports whether everything that came was read.
func (w *wire) isEmpty() bool { return w.rp == w.wp && w.front.ReadBufferLen() == 0 }

// block is some rows as they came: value c of row r begins, with the four bytes of its
// length, at bytes[at[c*stride+r]]. It is valid until the wire is used again.
type block struct {
	bytes        []byte
	at           []uint32
	stride, rows int
	size         int // of the rows, without their headers
}

func (b block) column(c, rows int) []uint32 { return b.at[c*b.stride:][:rows] }

// rows takes whole rows of so many columns, as many as were read of a long result, and
// waits for one if need be. None come if the library must read on: the result is short,
// what comes next is something else, or is too large.
func (w *wire) rows(cols, maxRows, maxSize int) block {
	if !w.isLong() || w.left != 0 || w.front.ReadBufferLen() != 0 {
		return block{}
	}
	for {
		b := w.index(cols, maxRows, maxSize)
		if b.rows > 0 || w.wp-w.rp >= headerSize && (w.in.bytes[w.rp] != 'D' || w.isWhole() || !w.fits()) {
			return b
		}
		if w.fill() != nil {
			return b // the library will meet the same error
		}
	}
}

// isWhole reports whether all of the message at rp was read, fits whether it can be.
func (w *wire) isWhole() bool { return w.wp-w.rp >= headerSize+w.bodyLen() }
func (w *wire) fits() bool    { return headerSize+w.bodyLen() <= largeBuffer }

// index finds the values of the whole rows from rp on, and goes past them.
func (w *wire) index(cols, maxRows, maxSize int) block {
	b := block{bytes: w.in.bytes, at: w.in.cells, stride: len(w.in.cells) / max(cols, 1)}
	for maxRows = min(maxRows, b.stride); b.rows < maxRows && b.size < maxSize; b.rows++ {
		if w.wp-w.rp < headerSize+2 || b.bytes[w.rp] != 'D' || !w.isWhole() {
			break
		}
		end := w.rp + headerSize + w.bodyLen()
		if !b.indexRow(w.rp+headerSize, end, cols) {
			break
		}
		b.size += end - w.rp - headerSize - 2
		w.rp = end
	}
	return b
}

// indexRow notes where the values of a row are, and reports whether it is sound.
func (b *block) indexRow(at, end, cols int) bool {
	if end-at < 2 || int(binary.BigEndian.Uint16(b.bytes[at:])) != cols {
		return false
	}
	at += 2
	for i := b.rows; i < b.rows+cols*b.stride; i += b.stride {
		if end-at < 4 {
			return false
		}
		b.at[i] = uint32(at)
		n := int(int32(binary.BigEndian.Uint32(b.bytes[at:])))
		at += 4
		if n > 0 {
			at += n
		} else if n < -1 {
			return false
		}
	}
	return at <= end
}

// cell is the value at an offset, nil for null.
func cell(bytes []byte, at uint32) []byte {
	n := int32(binary.BigEndian.Uint32(bytes[at:]))
	if n < 0 {
		return nil
	}
	return bytes[at+4:][:n:n]
}
