package format

import (
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
)

// source decodes a stream batch by batch. Its frames are checked and bounded before
// the decoder, which allocates whatever a length field asks for, sees them.
type source struct {
	messages *messages
	reader   *ipc.Reader
}

// messages hands frames to the decoder.
type messages struct {
	frames *Frames
	err    error // the first error: the decoder takes one that wraps io.EOF for an end
}

// Message implements ipc.MessageReader.
func (m *messages) Message() (*ipc.Message, error) {
	frame, err := m.frames.Next()
	if err != nil {
		m.err = err
		return nil, err
	}
	return ipc.NewMessage(memory.NewBufferBytes(frame.Metadata), memory.NewBufferBytes(frame.Body)), nil
}

// Retain implements ipc.MessageReader.
func (m *messages) Retain() {}

// Release implements ipc.MessageReader.
func (m *messages) Release() {}

// failure is why there are no more messages, nil at the end of a whole stream.
func (m *messages) failure() error {
	if m.err == io.EOF {
		return nil
	}
	return m.err
}

// open reads the schema of r. The caller closes the source.
func open(r io.Reader) (*source, error) {
	m := &messages{frames: NewFrames(r, arrowipc.Options{})}
	reader, err := ipc.NewReaderFromMessageReader(m)
	if err != nil {
		if m.failure() != nil {
			return nil, m.failure()
		}
		return nil, fmt.Errorf("read the result's schema: %w", err)
	}
	return &source{messages: m, reader: reader}, nil
}

func (s *source) close() { s.reader.Release() }

func (s *source) schema() *arrow.Schema { return s.reader.Schema() }

// each calls fn with every batch, good until fn returns, of a stream that must be whole.
func (s *source) each(fn func(arrow.RecordBatch) error) error {
	for s.reader.Next() {
		if err := fn(s.reader.RecordBatch()); err != nil {
			return err
		}
	}
	if err := s.messages.failure(); err != nil {
		return err
	}
	if err := s.reader.Err(); err != nil {
		return fmt.Errorf("decode the result: %w", err)
	}
	if s.messages.err == nil {
		return fmt.Errorf("decode the result: the decoder stopped before the end")
	}
	return nil
}

// Each decodes the stream r and calls fn with every batch, good until fn returns. It
// returns nil only if the stream was whole.
func Each(r io.Reader, fn func(arrow.RecordBatch) error) error {
	src, err := open(r)
	if err != nil {
		return err
	}
	defer src.close()
	return src.each(fn)
}
