package arrowipc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The limits that a Reader keeps unless its options say otherwise.
const (
	DefaultMaxMetadata = 16 << 20
	DefaultMaxBody     = 256 << 20
)

// Options of a Reader.
type Options struct {
	// MaxMetadata and MaxBody bound a message in bytes. Default: DefaultMaxMetadata,
	// DefaultMaxBody. More is refused before it is read.
	MaxMetadata int64
	MaxBody     int64
	// Pool lends the memory of bodies; frames must then be released. Optional: without
	// it, the garbage collector takes care.
	Pool *Pool
}

// Reader reads a stream message by message. It asks r for exactly the bytes of each
// message and never reads beyond the end of the stream.
type Reader struct {
	r    io.Reader
	opts Options
	err  error // sticky: what every later Next returns

	started bool
	prefix  [prefixSize]byte
}

// NewReader returns a Reader of the stream r.
func NewReader(r io.Reader, opts Options) *Reader {
	if opts.MaxMetadata <= 0 {
		opts.MaxMetadata = DefaultMaxMetadata
	}
	if opts.MaxBody <= 0 {
		opts.MaxBody = DefaultMaxBody
	}
	return &Reader{r: r, opts: opts}
}

// Next returns the next message. It returns io.EOF after the end-of-stream marker
// only; a stream that stops anywhere else gives an error that wraps
// io.ErrUnexpectedEOF, and an error of the underlying reader is wrapped. The first
// message is a schema, and no other is.
func (r *Reader) Next() (Frame, error) {
	if r.err != nil {
		return Frame{}, r.err
	}
	f, err := r.next()
	if err != nil {
		r.err = err
		return Frame{}, err
	}
	return f, nil
}

func (r *Reader) next() (Frame, error) {
	size, err := r.readPrefix()
	if err != nil {
		return Frame{}, err
	}
	metadata, err := r.readBytes(size, nil, "metadata")
	if err != nil {
		return Frame{}, err
	}
	h, err := parseHeader(metadata)
	if err != nil {
		return Frame{}, err
	}
	if err := r.check(h); err != nil {
		return Frame{}, err
	}
	body, err := r.readBytes(h.bodyLen, r.opts.Pool, "body")
	if err != nil {
		return Frame{}, err
	}
	return Frame{Kind: h.kind, Metadata: metadata, Body: body, Rows: h.rows, pool: r.opts.Pool}, nil
}

// readPrefix returns the size of the next message's metadata.
func (r *Reader) readPrefix() (int64, error) {
	if _, err := io.ReadFull(r.r, r.prefix[:]); err != nil {
		return 0, readError("the start of a message", err)
	}
	if binary.LittleEndian.Uint32(r.prefix[:]) != continuation {
		return 0, errors.New("arrowipc: not an Arrow IPC stream: a message does not start with the continuation marker")
	}
	size := int64(int32(binary.LittleEndian.Uint32(r.prefix[4:])))
	switch {
	case size == 0 && !r.started:
		return 0, errors.New("arrowipc: the stream ends before its schema")
	case size == 0:
		return 0, io.EOF
	case size < 0 || size > r.opts.MaxMetadata:
		return 0, fmt.Errorf("arrowipc: a message announces %d bytes of metadata; the limit is %d", size, r.opts.MaxMetadata)
	}
	return size, nil
}

// check refuses a message that is too large or out of place.
func (r *Reader) check(h header) error {
	if h.bodyLen > r.opts.MaxBody {
		return fmt.Errorf("arrowipc: a %s announces a body of %d bytes; the limit is %d", h.kind, h.bodyLen, r.opts.MaxBody)
	}
	if r.started == (h.kind == Schema) {
		return fmt.Errorf("arrowipc: a %s is out of place: a stream is one schema, then batches", h.kind)
	}
	r.started = true
	return nil
}

// trusted is how many bytes are allocated on the word of the other side; beyond it,
// memory grows with what has really come.
const trusted = 4 << 20

// readBytes reads n bytes into memory of their own.
func (r *Reader) readBytes(n int64, pool *Pool, what string) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	buf := pool.get(int(min(n, trusted)))
	for read := 0; ; {
		m, err := io.ReadFull(r.r, buf[read:])
		if err != nil {
			pool.Put(buf)
			return nil, readError("the "+what+" of a message", err)
		}
		if read += m; int64(read) == n {
			return buf, nil
		}
		grown := pool.get(int(min(n, 2*int64(read))))
		copy(grown, buf)
		pool.Put(buf)
		buf = grown
	}
}

// readError says where a stream broke off. A clean end of the bytes is not a clean
// end of the stream.
func readError(what string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("arrowipc: read %s: %w", what, err)
}
