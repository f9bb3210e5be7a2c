package arrowipc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Kind says what a frame carries.
type Kind uint8

// The kinds, with the values of the format's MessageHeader union.
const (
	Schema          Kind = 1
	DictionaryBatch Kind = 2
	RecordBatch     Kind = 3
)

// String returns the kind's name.
func (k Kind) String() string {
	switch k {
	case Schema:
		return "schema"
	case DictionaryBatch:
		return "dictionary batch"
	case RecordBatch:
		return "record batch"
	}
	return fmt.Sprintf("message of kind %d", uint8(k))
}

// Frame is one message of a stream. It owns its memory.
type Frame struct {
	Kind Kind
	// Metadata is the message's flatbuffer, without continuation and length, with the
	// padding that followed it: what Flight calls data_header.
	Metadata []byte
	Body     []byte
	Rows     int64 // of a record batch; 0 otherwise

	pool *Pool
}

// Size is how many bytes the frame takes in a stream.
func (f Frame) Size() int64 {
	return prefixSize + int64(padded(len(f.Metadata))) + int64(len(f.Body))
}

// Release gives the body's memory back to the reader's pool, if it has one. Body
// must not be used after it, in any copy of the frame. It need not be called.
func (f *Frame) Release() {
	if f.pool != nil {
		f.pool.Put(f.Body)
	}
	f.Body, f.pool = nil, nil
}

// prefixSize is the continuation and the metadata's length.
const prefixSize = 8

// continuation starts every message.
const continuation = 0xFFFFFFFF

// endOfStream is the marker that ends a whole stream.
var endOfStream = [prefixSize]byte{0xFF, 0xFF, 0xFF, 0xFF}

// WriteFrame writes f as it stood in the stream that it was read from.
func WriteFrame(w io.Writer, f Frame) error {
	n := padded(len(f.Metadata))
	head := make([]byte, prefixSize+n)
	binary.LittleEndian.PutUint32(head, continuation)
	binary.LittleEndian.PutUint32(head[4:], uint32(n))
	copy(head[prefixSize:], f.Metadata)
	if _, err := w.Write(head); err != nil {
		return fmt.Errorf("arrowipc: write a %s: %w", f.Kind, err)
	}
	if len(f.Body) == 0 {
		return nil
	}
	if _, err := w.Write(f.Body); err != nil {
		return fmt.Errorf("arrowipc: write a %s: %w", f.Kind, err)
	}
	return nil
}

// WriteEOS writes the end-of-stream marker: only after a whole result.
func WriteEOS(w io.Writer) error {
	if _, err := w.Write(endOfStream[:]); err != nil {
		return fmt.Errorf("arrowipc: write the end of the stream: %w", err)
	}
	return nil
}

func padded(n int) int { return (n + 7) &^ 7 }

// errMetadata says that a message's flatbuffer points outside itself, or lacks what it needs.
var errMetadata = errors.New("arrowipc: the metadata of a message is malformed")

// The fields of the tables Message, RecordBatch and DictionaryBatch, and the oldest
// version of the format that is read (Arrow 0.8; 1.0 and later write 4).
const (
	messageVersion    = 0
	messageHeaderType = 1
	messageHeader     = 2
	messageBodyLength = 3
	recordBatchLength = 0
	dictionaryData    = 1

	oldestVersion = 3
)

// header is what a message's metadata says.
type header struct {
	kind    Kind
	bodyLen int64
	rows    int64
}

// parseHeader reads a message's metadata.
func parseHeader(metadata []byte) (header, error) {
	msg, ok := rootTable(metadata)
	if !ok {
		return header{}, errMetadata
	}
	version, ok1 := msg.int16Field(messageVersion)
	kind, ok2 := msg.uint8Field(messageHeaderType)
	bodyLen, ok3 := msg.int64Field(messageBodyLength)
	body, ok4 := msg.tableField(messageHeader)
	if !ok1 || !ok2 || !ok3 || !ok4 || bodyLen < 0 {
		return header{}, errMetadata
	}
	if version < oldestVersion {
		return header{}, fmt.Errorf("arrowipc: a message in version %d of the format is not supported", version+1)
	}
	h := header{kind: Kind(kind), bodyLen: bodyLen}
	return h, h.readRows(body)
}

// readRows checks the kind and, for a record batch, sets the number of rows.
func (h *header) readRows(body table) error {
	ok := true
	switch h.kind {
	case Schema:
	case DictionaryBatch:
		_, ok = body.tableField(dictionaryData)
	case RecordBatch:
		h.rows, ok = body.int64Field(recordBatchLength)
	default:
		return fmt.Errorf("arrowipc: a %s has no place in a stream", h.kind)
	}
	if !ok || h.rows < 0 {
		return errMetadata
	}
	return nil
}
