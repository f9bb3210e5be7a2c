package flightsql

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/service"
	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

// The size of the soak: so many streams at once, on so many connections.
const (
	soakConns   = 8
	soakStreams = 30 // of each connection
	soakBatches = 20
	soakRows    = 12_000 // int64s: a body of 96 kB
)

// noise is what the bodies of a soak are cut from.
type noise struct {
	frame arrowipc.Frame // of a batch with another body
	head  []byte         // schema message
	bytes []byte
}

func newNoise() *noise {
	schema := arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for range soakRows {
		b.Field(0).(*array.Int64Builder).Append(0)
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	frames := arrowipc.NewReader(bytes.NewReader(frontendtest.Stream(schema, rec)), arrowipc.Options{})
	if _, err := frames.Next(); err != nil {
		panic(err)
	}
	frame, err := frames.Next()
	if err != nil {
		panic(err)
	}
	n := &noise{frame: frame, bytes: make([]byte, 1<<20)}
	n.head, _ = arrowipc.EncodeSchema(schema)
	_, _ = rand.NewChaCha8([32]byte{}).Read(n.bytes)
	return n
}

// body is what batch i of a stream holds: no two of neighbours are equal.
func (n *noise) body(stream, i int) []byte {
	size := len(n.frame.Body)
	at := (stream*7919 + i*104729) % (len(n.bytes) - size)
	return n.bytes[at : at+size]
}

// noisy answers a query that is a number with the stream of that number.
type noisy struct {
	*frontendtest.Front
	noise *noise
	open  atomic.Int64
}

// Query implements service.Frontend.
func (f *noisy) Query(ctx context.Context, in service.QueryInput) (*service.Result, error) {
	stream, err := strconv.Atoi(in.SQL)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	stop := context.AfterFunc(ctx, func() { r.CloseWithError(ctx.Err()) })
	f.open.Add(1)
	go func() { w.CloseWithError(f.write(w, stream)) }()
	return &service.Result{QueryID: in.SQL, Body: r, Finish: func(error) core.Query {
		stop()
		r.Close()
		f.open.Add(-1)
		return core.Query{}
	}}, nil
}

func (f *noisy) write(w io.Writer, stream int) error {
	if _, err := w.Write(f.noise.head); err != nil {
		return err
	}
	for i := range soakBatches {
		frame := f.noise.frame
		frame.Body = f.noise.body(stream, i)
		if err := arrowipc.WriteFrame(w, frame); err != nil {
			return err
		}
	}
	return arrowipc.WriteEOS(w)
}

// errCorrupt says that a body is not its stream's.
var errCorrupt = errors.New("this is not what was sent")

// reader is one client of the soak.
type reader struct {
	noise  *noise
	stream int
	pause  time.Duration // between batches
	leave  int           // after so many batches; 0: it reads all
	cut    func()        // called after half of the batches; breaks the connection
}

// read checks every body, and that the end comes where it must.
func (r reader) read(ctx context.Context, c flight.Client, ticket *flight.Ticket) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.DoGet(ctx, ticket)
	if err != nil {
		return err
	}
	if _, err := s.Recv(); err != nil { // the schema
		return err
	}
	for i := 0; ; i++ {
		if r.leave > 0 && i == r.leave {
			cancel()
			for err == nil { // what is on its way still comes
				_, err = s.Recv()
			}
			if err != io.EOF && status.Code(err) != codes.Canceled { // all may have come before
				return fmt.Errorf("after the cancel: %w", err)
			}
			return nil
		}
		data, err := s.Recv()
		if err == io.EOF && i == soakBatches {
			return nil
		}
		if err != nil {
			return fmt.Errorf("batch %d: %w", i, err)
		}
		if i == soakBatches || !bytes.Equal(data.GetDataBody(), r.noise.body(r.stream, i)) || !bytes.Equal(data.GetDataHeader(), r.noise.frame.Metadata) {
			return fmt.Errorf("batch %d: %w", i, errCorrupt)
		}
		if r.cut != nil && i == soakBatches/2 {
			r.cut()
		}
		time.Sleep(r.pause)
	}
}

// soak runs all readers at once, and returns when each has ended well; with breaks, every
// other connection breaks in the middle. Never are there more than three bodies of a
// stream that were taken and not given back.
func soak(t *testing.T, breaks bool, change func(r *reader)) (*Server, *noisy) {
	t.Helper()
	f := &noisy{Front: frontendtest.New(), noise: newNoise()}
	s, addr := serve(t, f.Front, func(o *Options) { o.Frontend = f })
	ctx, cancel := context.WithTimeout(outgoing(t), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for i := range soakConns {
		c, broken := client(t, addr), breaks && i%2 == 0
		for j := range soakStreams {
			r := reader{noise: f.noise, stream: i*soakStreams + j}
			if change(&r); broken && j == 0 {
				r.cut = func() { c.Close() }
			}
			wg.Go(func() {
				info, err := c.Execute(ctx, strconv.Itoa(r.stream))
				if err == nil {
					err = r.read(ctx, c.Client, info.Endpoint[0].Ticket)
				}
				if err != nil && (!broken || errors.Is(err, errCorrupt)) {
					t.Errorf("stream %d: %v", r.stream, err)
				}
				if n := s.codec.taken.Load() - s.codec.returned.Load(); n > 3*soakConns*soakStreams {
					t.Errorf("%d bodies are on their way", n)
				}
			})
		}
	}
	wg.Wait()
	if ctx.Err() != nil {
		t.Error("a stream hung")
	}
	settled(t, "results are open", func() bool { return f.open.Load() == 0 })
	return s, f
}

// settled waits until the transport is through with everything.
func settled(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func TestEveryBodyComesBack(t *testing.T) {
	s, _ := soak(t, false, func(r *reader) {
		if r.stream%4 == 0 {
			r.pause = 10 * time.Millisecond
		}
	})
	settled(t, "bodies of whole results did not come back", func() bool { return s.codec.taken.Load() == s.codec.returned.Load() })
	if got := s.codec.taken.Load(); got != soakConns*soakStreams*soakBatches {
		t.Errorf("%d bodies were sent", got)
	}
}

// TestClientsThatLeaveHarmNobody has readers that are slow, that cancel, and whose
// connections break among the others, who must get everything.
func TestClientsThatLeaveHarmNobody(t *testing.T) {
	soak(t, true, func(r *reader) {
		switch r.stream % 5 {
		case 0:
			r.pause = 10 * time.Millisecond
		case 1, 2:
			r.leave = 1 + r.stream%(soakBatches-1)
		case 3:
			r.pause, r.leave = 5*time.Millisecond, 1+r.stream%(soakBatches-1)
		}
	})
}
