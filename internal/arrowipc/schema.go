package arrowipc

import (
	"bytes"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// EncodeSchema returns a schema as an encapsulated message, the way it stands in a
// stream, and as the flatbuffer alone.
func EncodeSchema(schema *arrow.Schema) (message, header []byte) {
	payload := ipc.GetSchemaPayload(schema, memory.DefaultAllocator)
	defer payload.Release()
	meta := payload.Meta()
	defer meta.Release()

	header = bytes.Clone(meta.Bytes())
	var buf bytes.Buffer
	// A bytes.Buffer takes every write.
	_ = WriteFrame(&buf, Frame{Kind: Schema, Metadata: header})
	return buf.Bytes(), header
}

// DecodeSchema reads an encapsulated schema message.
func DecodeSchema(message []byte) (*arrow.Schema, error) {
	f, err := NewReader(bytes.NewReader(message), Options{}).Next()
	if err != nil {
		return nil, err
	}
	return SchemaOf(f)
}

// SchemaOf decodes the schema that a schema frame carries.
func SchemaOf(f Frame) (schema *arrow.Schema, err error) {
	if f.Kind != Schema {
		return nil, fmt.Errorf("arrowipc: a %s carries no schema", f.Kind)
	}
	if err := checkSchema(f.Metadata); err != nil {
		return nil, err
	}
	// arrow-go's readers of flatbuffers panic on malformed input.
	defer func() {
		if p := recover(); p != nil {
			schema, err = nil, fmt.Errorf("arrowipc: the schema is malformed: %v", p)
		}
	}()
	var buf bytes.Buffer
	if err := WriteFrame(&buf, Frame{Kind: Schema, Metadata: f.Metadata}); err != nil {
		return nil, err
	}
	r, err := ipc.NewReader(&buf)
	if err != nil {
		return nil, fmt.Errorf("arrowipc: decode a schema: %w", err)
	}
	defer r.Release()
	return r.Schema(), nil
}
