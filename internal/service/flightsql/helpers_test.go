package flightsql

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-adbc/go/adbc"
	driver "github.com/apache/arrow-adbc/go/adbc/driver/flightsql"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

// serve runs a Server for a fake on a TCP port and returns its address. At the end it
// checks that no query and no goroutine is left.
func serve(t testing.TB, front *frontendtest.Front, change func(*Options)) (*Server, string) {
	t.Helper()
	goroutines := runtime.NumGoroutine()
	t.Cleanup(func() { noLeak(t, goroutines) })
	return serveLeaky(t, front, change)
}

// serveLeaky does not count goroutines: the ADBC driver leaves some where it can't sign in.
func serveLeaky(t testing.TB, front *frontendtest.Front, change func(*Options)) (*Server, string) {
	t.Helper()
	opts := Options{Frontend: front, Logger: slog.New(slog.DiscardHandler), Version: "1.2.3", Grace: time.Second}
	if change != nil {
		change(&opts)
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Serve does not return")
		}
		if front.Open() != 0 || s.streams.Load() != 0 {
			t.Errorf("%d results and %d streams are left", front.Open(), s.streams.Load())
		}
	})
	return s, l.Addr().String()
}

func noLeak(t testing.TB, before int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if runtime.NumGoroutine() <= before {
			return
		}
	}
	buf := make([]byte, 1<<20)
	t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
}

// source is the option that names the data source in a header.
func source(name string) map[string]string {
	return map[string]string{driver.OptionRPCCallHeaderPrefix + HeaderSource: name}
}

// connect opens a connection of the ADBC driver with the good token as the password.
func connect(t testing.TB, addr string, options map[string]string) adbc.Connection {
	t.Helper()
	cnxn, err := dial(t, addr, options)
	if err != nil {
		t.Fatal(err)
	}
	return cnxn
}

func dial(t testing.TB, addr string, options map[string]string) (adbc.Connection, error) {
	t.Helper()
	all := map[string]string{
		adbc.OptionKeyURI: "grpc+tcp://" + addr, adbc.OptionKeyUsername: "anyone", adbc.OptionKeyPassword: frontendtest.Token,
	}
	for k, v := range options {
		if all[k] = v; v == "" {
			delete(all, k)
		}
	}
	db, err := driver.NewDriver(memory.DefaultAllocator).NewDatabase(all)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { db.Close() })
	cnxn, err := db.Open(context.Background())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { cnxn.Close() })
	return cnxn, nil
}

// statementFor makes a statement with its SQL set.
func statementFor(t testing.TB, cnxn adbc.Connection, sql string) adbc.Statement {
	t.Helper()
	stmt, err := cnxn.NewStatement()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stmt.Close() })
	if err := stmt.SetSqlQuery(sql); err != nil {
		t.Fatal(err)
	}
	return stmt
}

// query runs SQL and compares the result with a stream, value for value.
func query(t testing.TB, cnxn adbc.Connection, sql string, want []byte) error {
	t.Helper()
	stmt := statementFor(t, cnxn, sql)
	reader, _, err := stmt.ExecuteQuery(t.Context())
	if err != nil {
		return err
	}
	defer reader.Release()
	return compare(reader, want)
}

// count runs SQL and returns how many rows came.
func count(t testing.TB, cnxn adbc.Connection, sql string) (rows int64, err error) {
	t.Helper()
	reader, _, err := statementFor(t, cnxn, sql).ExecuteQuery(t.Context())
	if err != nil {
		return 0, err
	}
	defer reader.Release()
	for reader.Next() {
		rows += reader.RecordBatch().NumRows()
	}
	return rows, reader.Err()
}

// compare reads a result to its end and says where it differs from a stream.
func compare(got array.RecordReader, want []byte) error {
	expected, err := ipc.NewReader(bytes.NewReader(want))
	if err != nil {
		return err
	}
	defer expected.Release()
	for i := 0; got.Next(); i++ {
		if !expected.Next() {
			return fmt.Errorf("batch %d is too much", i)
		}
		if !got.RecordBatch().Schema().Equal(expected.Schema()) {
			return fmt.Errorf("the schema is %s, want %s", got.RecordBatch().Schema(), expected.Schema())
		}
		if !array.RecordEqual(got.RecordBatch(), expected.RecordBatch()) {
			return fmt.Errorf("batch %d differs", i)
		}
	}
	if got.Err() != nil {
		return got.Err()
	}
	if expected.Next() {
		return errors.New("the result is short")
	}
	return nil
}

// manyTypes is a stream whose frames use nulls, nesting, dictionaries and compression.
func manyTypes(t testing.TB, opts ...ipc.Option) []byte {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "i", Type: arrow.PrimitiveTypes.Int32, Nullable: true},
		{Name: "l", Type: arrow.ListOf(arrow.BinaryTypes.String), Nullable: true},
		{Name: "d", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int16, ValueType: arrow.BinaryTypes.String}, Nullable: true},
		{Name: "n", Type: &arrow.Decimal128Type{Precision: 20, Scale: 4}, Nullable: true, Metadata: arrow.NewMetadata([]string{"type"}, []string{"numeric"})},
	}, nil)
	rows := `[{"i":1,"l":["a",null],"d":"x","n":"1.5"},{"i":null,"l":null,"d":null,"n":null},{"i":-3,"l":[],"d":"y","n":"-0.0001"}]`
	batch, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, strings.NewReader(rows))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, append(opts, ipc.WithSchema(schema))...)
	for range 3 {
		if err := w.Write(batch); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
