package arrowipc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	flatbuffers "github.com/google/flatbuffers/go"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
)

// sample returns a stream that arrow-go wrote, the schema and the rows of its batches.
func sample(t testing.TB, opts ...ipc.Option) (stream []byte, schema *arrow.Schema, rows []int64) {
	t.Helper()
	dict := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}
	schema = arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int64},
		{Name: "word", Type: dict, Nullable: true},
		{Name: "list", Type: arrow.ListOf(arrow.StructOf(
			arrow.Field{Name: "x", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
			arrow.Field{Name: "y", Type: arrow.BinaryTypes.StringView, Nullable: true})), Nullable: true},
		{Name: "amount", Type: &arrow.Decimal128Type{Precision: 30, Scale: 4}, Nullable: true},
	}, nil)
	rows = []int64{3, 0, 1000}
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, append(opts, ipc.WithSchema(schema))...)
	for _, n := range rows {
		batch := sampleBatch(schema, n)
		if err := w.Write(batch); err != nil {
			t.Fatal(err)
		}
		batch.Release()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), schema, rows
}

func sampleBatch(schema *arrow.Schema, n int64) arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	words := b.Field(1).(*array.BinaryDictionaryBuilder)
	lists := b.Field(2).(*array.ListBuilder)
	points := lists.ValueBuilder().(*array.StructBuilder)
	for i := range n {
		b.Field(0).(*array.Int64Builder).Append(i)
		_ = words.AppendString(fmt.Sprint("word ", n, i%7))
		lists.Append(true)
		points.Append(true)
		points.FieldBuilder(0).(*array.Float64Builder).Append(float64(i))
		points.FieldBuilder(1).(*array.StringViewBuilder).Append(strings.Repeat("y", int(i%40)))
		b.Field(3).AppendNull()
	}
	return b.NewRecordBatch()
}

func TestRoundTripIsByteForByte(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]ipc.Option{
		"plain":  nil,
		"lz4":    {ipc.WithLZ4()},
		"zstd":   {ipc.WithZstd()},
		"deltas": {ipc.WithDictionaryDeltas(true)},
	} {
		for _, pool := range []*arrowipc.Pool{nil, new(arrowipc.Pool)} {
			t.Run(fmt.Sprintf("%s, pool %t", name, pool != nil), func(t *testing.T) {
				stream, schema, rows := sample(t, opts...)
				r := arrowipc.NewReader(iotest.OneByteReader(bytes.NewReader(stream)), arrowipc.Options{Pool: pool})
				var out bytes.Buffer
				var got []int64
				var dictionaries int
				var size int64
				for {
					f, err := r.Next()
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					switch f.Kind {
					case arrowipc.Schema:
						s, err := arrowipc.SchemaOf(f)
						if err != nil || !s.Equal(schema) {
							t.Fatalf("schema %v, %v; want %v", s, err, schema)
						}
					case arrowipc.DictionaryBatch:
						dictionaries++
					case arrowipc.RecordBatch:
						got = append(got, f.Rows)
					}
					size += f.Size()
					if err := arrowipc.WriteFrame(&out, f); err != nil {
						t.Fatal(err)
					}
					f.Release()
				}
				if err := arrowipc.WriteEOS(&out); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(out.Bytes(), stream) {
					t.Errorf("the stream came out different: %d bytes of %d", out.Len(), len(stream))
				}
				if fmt.Sprint(got) != fmt.Sprint(rows) {
					t.Errorf("rows %v, want %v", got, rows)
				}
				if dictionaries == 0 {
					t.Error("no dictionary batch seen")
				}
				if size != int64(len(stream)-8) {
					t.Errorf("sizes add up to %d, want %d", size, len(stream)-8)
				}
				if _, err := r.Next(); err != io.EOF {
					t.Errorf("Next after the end: %v, want io.EOF", err)
				}
			})
		}
	}
}

// Promise 5 stands on this: no prefix of a stream is taken for the whole.
func TestTruncatedAnywhereIsNeverEOF(t *testing.T) {
	t.Parallel()
	stream, _, _ := sample(t)
	for n := range stream {
		if n > 4096 && n < len(stream)-4096 && n%97 != 0 {
			continue
		}
		err := drain(bytes.NewReader(stream[:n]), arrowipc.Options{})
		if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			t.Fatalf("the first %d of %d bytes: %v, want io.ErrUnexpectedEOF", n, len(stream), err)
		}
	}
}

func TestReaderStopsAtTheMarker(t *testing.T) {
	t.Parallel()
	stream, _, _ := sample(t)
	r := bytes.NewReader(append(bytes.Clone(stream), "next"...))
	if err := drain(r, arrowipc.Options{}); err != io.EOF {
		t.Fatal(err)
	}
	if r.Len() != 4 {
		t.Errorf("%d bytes left, want the 4 after the marker", r.Len())
	}
}

func TestUnderlyingErrorIsKept(t *testing.T) {
	t.Parallel()
	stream, _, _ := sample(t)
	broken := errors.New("tunnel broke")
	err := drain(io.MultiReader(bytes.NewReader(stream[:len(stream)-20]), iotest.ErrReader(broken)), arrowipc.Options{})
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want the reader's own error", err)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	stream, _, _ := sample(t)
	_, header := arrowipc.EncodeSchema(arrow.NewSchema([]arrow.Field{{Name: "a", Type: arrow.PrimitiveTypes.Int64}}, nil))
	message := func(metadata []byte) []byte {
		var b bytes.Buffer
		if err := arrowipc.WriteFrame(&b, arrowipc.Frame{Metadata: metadata}); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	eos := []byte{0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0}
	huge := []byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F}
	negative := []byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}
	for _, tt := range []struct {
		name   string
		stream []byte
		opts   arrowipc.Options
		want   string
	}{
		{"end before the schema", eos, arrowipc.Options{}, "before its schema"},
		{"not Arrow", []byte("HTTP/1.1 200 OK\r\n\r\n"), arrowipc.Options{}, "not an Arrow IPC stream"},
		{"huge metadata", huge, arrowipc.Options{}, "limit is 16777216"},
		{"negative metadata", negative, arrowipc.Options{}, "announces -1 bytes"},
		{"large body", stream, arrowipc.Options{MaxBody: 100}, "limit is 100"},
		{"large metadata", stream, arrowipc.Options{MaxMetadata: 64}, "limit is 64"},
		{"two schemas", append(message(header), message(header)...), arrowipc.Options{}, "a schema is out of place"},
		{"batch first", message(batchMetadata(3, 4, 5, 0)), arrowipc.Options{}, "a record batch is out of place"},
		{"tensor", append(message(header), message(batchMetadata(4, 4, 0, 0))...), arrowipc.Options{}, "kind 4 has no place"},
		{"negative body", message(batchMetadata(3, 4, 5, -8)), arrowipc.Options{}, "malformed"},
		{"negative rows", message(batchMetadata(3, 4, -5, 0)), arrowipc.Options{}, "malformed"},
		{"old version", message(batchMetadata(3, 2, 5, 0)), arrowipc.Options{}, "version 3 of the format"},
		{"no flatbuffer", message(make([]byte, 8)), arrowipc.Options{}, "malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := drain(bytes.NewReader(tt.stream), tt.opts)
			if err == nil || err == io.EOF || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// batchMetadata makes a message's flatbuffer.
func batchMetadata(kind byte, version int16, rows, bodyLen int64) []byte {
	b := flatbuffers.NewBuilder(64)
	b.StartObject(5)
	b.PrependInt64Slot(0, rows, 0)
	header := b.EndObject()
	b.StartObject(5)
	b.PrependInt64Slot(3, bodyLen, 0)
	b.PrependUOffsetTSlot(2, header, 0)
	b.PrependInt16Slot(0, version, 0)
	b.PrependByteSlot(1, kind, 0)
	b.Finish(b.EndObject())
	return b.FinishedBytes()
}

// A peer that announces much and sends little costs little.
func TestMemoryGrowsWithWhatComes(t *testing.T) {
	t.Parallel()
	_, header := arrowipc.EncodeSchema(arrow.NewSchema(nil, nil))
	var b bytes.Buffer
	for _, metadata := range [][]byte{header, batchMetadata(3, 4, 1, 200<<20)} {
		if err := arrowipc.WriteFrame(&b, arrowipc.Frame{Metadata: metadata}); err != nil {
			t.Fatal(err)
		}
	}
	stream := b.Bytes()
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := drain(bytes.NewReader(stream), arrowipc.Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
				b.Fatal(err)
			}
		}
	})
	if got := result.AllocedBytesPerOp(); got > 8<<20 {
		t.Errorf("an announced body of 200 MiB cost %d bytes", got)
	}
}

func TestSchemaMessage(t *testing.T) {
	t.Parallel()
	_, schema, _ := sample(t)
	message, header := arrowipc.EncodeSchema(schema)
	if len(message)%8 != 0 || binary.LittleEndian.Uint32(message[4:]) != uint32(len(message)-8) {
		t.Errorf("the message of %d bytes is not padded, or says the wrong length", len(message))
	}
	if !bytes.Contains(message, header) {
		t.Error("the message does not contain the header")
	}
	got, err := arrowipc.DecodeSchema(message)
	if err != nil || !got.Equal(schema) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := arrowipc.DecodeSchema(message[:len(message)-1]); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short message: %v", err)
	}
}

// A few kilobytes that stand for more than any memory.
func TestSchemaBombsAreRefused(t *testing.T) {
	t.Parallel()
	for name, build := range map[string]func(b *flatbuffers.Builder) (fields, metadata flatbuffers.UOffsetT){
		"63 levels, each pointing twice at the next": func(b *flatbuffers.Builder) (fields, metadata flatbuffers.UOffsetT) {
			var child, children flatbuffers.UOffsetT
			for range 63 {
				b.StartObject(7)
				b.PrependUOffsetTSlot(5, children, 0)
				child = b.EndObject()
				children = repeated(b, child, 2)
			}
			return repeated(b, child, 1), 0
		},
		"one long value ten thousand times": func(b *flatbuffers.Builder) (fields, metadata flatbuffers.UOffsetT) {
			value := b.CreateString(strings.Repeat("x", 1<<20))
			b.StartObject(2)
			b.PrependUOffsetTSlot(1, value, 0)
			return 0, repeated(b, b.EndObject(), 10_000)
		},
		"a vector that says it is longer than the message": func(b *flatbuffers.Builder) (fields, metadata flatbuffers.UOffsetT) {
			b.StartVector(4, 0, 4)
			return 0, b.EndVector(1 << 31)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := flatbuffers.NewBuilder(1024)
			fields, metadata := build(b)
			b.StartObject(4)
			b.PrependUOffsetTSlot(1, fields, 0)
			b.PrependUOffsetTSlot(2, metadata, 0)
			schema := b.EndObject()
			b.StartObject(5)
			b.PrependUOffsetTSlot(2, schema, 0)
			b.PrependInt16Slot(0, 4, 0)
			b.PrependByteSlot(1, 1, 0)
			b.Finish(b.EndObject())
			_, err := arrowipc.SchemaOf(arrowipc.Frame{Kind: arrowipc.Schema, Metadata: b.FinishedBytes()})
			if err == nil || !strings.Contains(err.Error(), "would take more than") &&
				!strings.Contains(err.Error(), "is malformed") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// repeated makes a vector that points n times at the same table.
func repeated(b *flatbuffers.Builder, to flatbuffers.UOffsetT, n int) flatbuffers.UOffsetT {
	b.StartVector(4, n, 4)
	for range n {
		b.PrependUOffsetT(to)
	}
	return b.EndVector(n)
}

func TestPoolKeepsFramesApart(t *testing.T) {
	t.Parallel()
	stream, _, _ := sample(t)
	pool := new(arrowipc.Pool)
	for range 5 { // later rounds get what earlier ones gave back
		var frames []arrowipc.Frame
		r := arrowipc.NewReader(bytes.NewReader(stream), arrowipc.Options{Pool: pool})
		for {
			f, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			frames = append(frames, f)
		}
		var out bytes.Buffer
		for i := range frames {
			if err := arrowipc.WriteFrame(&out, frames[i]); err != nil {
				t.Fatal(err)
			}
			frames[i].Release()
			frames[i].Release() // the second has no effect
		}
		if !bytes.Equal(out.Bytes(), stream[:len(stream)-8]) {
			t.Fatal("frames that were held at once share memory")
		}
	}
}

func FuzzReader(f *testing.F) {
	stream, _, _ := sample(f)
	f.Add(stream)
	f.Add(stream[:len(stream)-8])
	zstd, _, _ := sample(f, ipc.WithZstd())
	f.Add(zstd)
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := arrowipc.NewReader(bytes.NewReader(stream), arrowipc.Options{MaxBody: 1 << 20, MaxMetadata: 1 << 16})
		var out bytes.Buffer
		for {
			fr, err := r.Next()
			if err == io.EOF {
				if err := arrowipc.WriteEOS(&out); err != nil {
					t.Fatal(err)
				}
				break
			}
			if err != nil {
				return
			}
			if fr.Kind == arrowipc.Schema {
				_, _ = arrowipc.SchemaOf(fr)
			}
			if err := arrowipc.WriteFrame(&out, fr); err != nil {
				t.Fatal(err)
			}
		}
		// What a whole stream becomes is a whole stream with the same frames. Only the
		// padding of metadata may differ: a length that is not a multiple of 8 is rounded.
		if err := drain(&out, arrowipc.Options{}); err != io.EOF {
			t.Errorf("the stream written again: %v", err)
		}
	})
}

// drain reads to the end and returns what Next ended with.
func drain(r io.Reader, opts arrowipc.Options) error {
	rd := arrowipc.NewReader(r, opts)
	for {
		if _, err := rd.Next(); err != nil {
			return err
		}
	}
}

func BenchmarkRelay(b *testing.B) {
	stream, _, _ := sample(b)
	b.SetBytes(int64(len(stream)))
	pool := new(arrowipc.Pool)
	for b.Loop() {
		r := arrowipc.NewReader(bytes.NewReader(stream), arrowipc.Options{Pool: pool})
		for {
			f, err := r.Next()
			if err != nil {
				break
			}
			if err := arrowipc.WriteFrame(io.Discard, f); err != nil {
				b.Fatal(err)
			}
			f.Release()
		}
	}
}
