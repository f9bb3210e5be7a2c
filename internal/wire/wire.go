// Package wire frames the JSON messages of Sluice's two control connections, host to
// service and member to service: a length of four bytes, big endian, then the
// document. Data never travels in it. Both sides of a connection use it; it knows
// no message.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// MaxMessage is the size, in bytes, of the largest message that Read accepts.
const MaxMessage = 64 << 20

// Write sends one message in one call to w.Write. Calls must not overlap.
func Write(w io.Writer, msg any) error {
	doc, err := json.Marshal(msg)
	if err != nil {
		return fmt.Errorf("wire: encode %T: %w", msg, err)
	}
	if len(doc) > MaxMessage {
		return fmt.Errorf("wire: a %T of %d bytes is over the limit of %d", msg, len(doc), MaxMessage)
	}
	buf := make([]byte, 4, 4+len(doc))
	binary.BigEndian.PutUint32(buf, uint32(len(doc)))
	if _, err := w.Write(append(buf, doc...)); err != nil {
		return fmt.Errorf("wire: send %T: %w", msg, err)
	}
	return nil
}

// Read receives one message into msg. It returns io.EOF only between messages. A
// message over limit bytes (0: MaxMessage) is refused before it is read.
func Read(r io.Reader, msg any, limit int) error {
	if limit <= 0 || limit > MaxMessage {
		limit = MaxMessage
	}
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.EOF {
			return io.EOF
		}
		return fmt.Errorf("wire: receive: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > uint32(limit) {
		return fmt.Errorf("wire: the peer announces a message of %d bytes, over the limit of %d", n, limit)
	}
	doc := make([]byte, n)
	if _, err := io.ReadFull(r, doc); err != nil {
		return fmt.Errorf("wire: receive: %w", io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(doc, msg); err != nil {
		return fmt.Errorf("wire: decode %T: %w", msg, err)
	}
	return nil
}
