package gateway

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

// lineitem is a batch of the shape of TPC-H's table: 8192 rows of about 180 bytes.
func lineitem() arrow.RecordBatch {
	var fields []arrow.Field
	for i := range 11 {
		fields = append(fields, arrow.Field{Name: fmt.Sprint("n", i), Type: arrow.PrimitiveTypes.Int64, Nullable: true})
	}
	for i := range 5 {
		fields = append(fields, arrow.Field{Name: fmt.Sprint("s", i), Type: arrow.BinaryTypes.String, Nullable: true})
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema(fields, nil))
	defer b.Release()
	for row := range 8192 {
		for i := range 11 {
			b.Field(i).(*array.Int64Builder).Append(int64(row))
		}
		for i := range 5 {
			b.Field(11 + i).(*array.StringBuilder).Append("DELIVER IN PERSON")
		}
	}
	return b.NewRecordBatch()
}

// wide gives n times the same batch.
type wide struct {
	reader
	batch arrow.RecordBatch
}

func (w *wide) Schema() *arrow.Schema { return w.batch.Schema() }

func benchSource(n int) *fakeSource {
	batch := lineitem()
	return &fakeSource{execute: func(context.Context, string, arrow.RecordBatch) (array.RecordReader, error) {
		return &wide{batch: batch, reader: reader{next: func(i int) (arrow.RecordBatch, error) {
			if i >= n {
				return nil, nil
			}
			return batch, nil
		}}}, nil
	}}
}

// BenchmarkStream sends 538 MB over loopback: bytes that were ready, for comparison; the
// same as batches; and those through the tunnel (TLS, and a relay in the same process).
func BenchmarkStream(b *testing.B) {
	const batches = 360
	source := benchSource(batches)
	b.Run("bytes", func(b *testing.B) {
		ready := make([]byte, 1_500_000)
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", memberapi.TrailerStatus)
			for range batches {
				_, _ = w.Write(ready)
			}
			w.Header().Set(memberapi.TrailerStatus, memberapi.StatusOK)
		}))
		defer web.Close()
		benchStream(b, http.DefaultClient, web.URL)
	})
	b.Run("http", func(b *testing.B) {
		url, _ := serve(b, source)
		benchStream(b, http.DefaultClient, url)
	})
	b.Run("tunnel", func(b *testing.B) {
		s := NewServer(ServerOptions{Lookup: source.lookup, Logger: slog.New(slog.DiscardHandler)})
		defer s.Close()
		benchStream(b, tunneltest.Start(b, s).Client(), "http://member")
	})
}

func benchStream(b *testing.B, client *http.Client, url string) {
	buf := make([]byte, 256<<10)
	for b.Loop() {
		resp := postWith(b, b.Context(), client, url+memberapi.PathQuery, query("select"))
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
		if err != nil || resp.Trailer.Get(memberapi.TrailerStatus) != memberapi.StatusOK {
			b.Fatal(err, resp.Trailer)
		}
		resp.Body.Close()
		b.SetBytes(n)
	}
}

// BenchmarkShort is a query of one row: what the gateway adds to it.
func BenchmarkShort(b *testing.B) {
	one := numberBatch(0, 1)
	source := &fakeSource{execute: func(context.Context, string, arrow.RecordBatch) (array.RecordReader, error) {
		return &reader{next: func(i int) (arrow.RecordBatch, error) {
			if i > 0 {
				return nil, nil
			}
			return one, nil
		}}, nil
	}}
	url, _ := serve(b, source)
	b.ReportAllocs()
	for b.Loop() {
		resp := postWith(b, b.Context(), http.DefaultClient, url+memberapi.PathQuery, query("select 1"))
		if res := read(resp); res.err != nil {
			b.Fatal(res.err)
		}
		resp.Body.Close()
	}
}
