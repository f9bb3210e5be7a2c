package flightsql

import (
	"sync/atomic"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
)

// The fields of FlightData that results use.
const (
	fieldHeader = 2
	fieldBody   = 1000
)

// codec is gRPC's own codec, but for frames: their bodies go to the transport as they
// are, and back to their pool when the transport is through with them.
//
// The transport keeps what is outstanding small: a stream's Send waits until all but
// 64 KiB of the message before has been written. But it does not give back every body:
// what is queued when a stream or its connection ends may go to the garbage collector.
// So nothing here may ever wait for a body to come back.
type codec struct {
	encoding.CodecV2
	pool *arrowipc.Pool

	taken, returned atomic.Int64 // bodies
}

func newCodec(pool *arrowipc.Pool) *codec {
	return &codec{CodecV2: encoding.GetCodecV2(proto.Name), pool: pool}
}

// Marshal implements encoding.CodecV2. It takes over the body of a frame.
func (c *codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*arrowipc.Frame)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	head := make([]byte, 0, len(f.Metadata)+24) // tags and lengths take 14 at the most
	head = protowire.AppendTag(head, fieldHeader, protowire.BytesType)
	head = protowire.AppendBytes(head, f.Metadata)
	if len(f.Body) == 0 {
		return mem.BufferSlice{mem.SliceBuffer(head)}, nil
	}
	head = protowire.AppendTag(head, fieldBody, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(f.Body)))
	body := f.Body
	f.Body = nil
	c.taken.Add(1)
	return mem.BufferSlice{mem.SliceBuffer(head), mem.NewBuffer(&body, bodies{c})}, nil
}

// bodies gives the transport's buffers back to the pool that frames come from.
type bodies struct{ c *codec }

// Get implements mem.BufferPool; the transport takes no buffer from here.
func (b bodies) Get(n int) *[]byte {
	p := make([]byte, n)
	return &p
}

// Put implements mem.BufferPool.
func (b bodies) Put(p *[]byte) {
	b.c.pool.Put(*p)
	b.c.returned.Add(1)
}
