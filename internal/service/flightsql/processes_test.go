package flightsql

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/service"
	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
	"github.com/sluice-gateway/sluice/internal/service/httpapi"
	"github.com/sluice-gateway/sluice/internal/tunnel"
	"github.com/sluice-gateway/sluice/internal/tunnel/relay"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

// roleVariable turns this test's program into one of the other processes of a
// measurement, so that what it uses is not counted as the service's.
const roleVariable = "SLUICE_TEST_ROLE"

func TestMain(m *testing.M) {
	roles := map[string]func(json.RawMessage) error{
		"member": memberRole, "flight": flightRole, "http": httpRole, "flight short": shortRole,
	}
	role := struct {
		Name string
		With json.RawMessage
	}{}
	doc := os.Getenv(roleVariable)
	if doc == "" {
		os.Exit(m.Run())
	}
	if err := json.Unmarshal([]byte(doc), &role); err != nil {
		panic(err)
	}
	if err := roles[role.Name](role.With); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// process starts this program in a role.
func process(t testing.TB, name string, with any) *exec.Cmd {
	t.Helper()
	doc, err := json.Marshal(map[string]any{"Name": name, "With": with})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), roleVariable+"="+string(doc)), os.Stderr
	return cmd
}

// joining is what a member process needs.
type joining struct {
	Address, Token string
	CA             []byte
	Batches        int
	Pace           time.Duration // between batches, as a data source gives them
}

// remote is a service over a real tunnel to a member in another process, which answers
// every query with the same batches.
type remote struct {
	*frontendtest.Front
	*tunneltest.Service
	rt    http.RoundTripper
	bytes int64 // of the result
}

// startRemote runs it until the test's end.
func startRemote(t testing.TB, batches int, pace time.Duration) *remote {
	t.Helper()
	svc := tunneltest.StartService(t, tunneltest.Options{Logger: slog.New(slog.DiscardHandler)})
	svc.AddToken("once", identity.Subject{Role: memberapi.RoleMember, Name: "m-1", Generation: 1})
	cmd := process(t, "member", joining{svc.Addr, "once", svc.CA.CertPEM(), batches, pace})
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // tells it to end
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), tunneltest.Patience)
	defer cancel()
	if err := svc.Hub.WaitUp(ctx, "m-1", 1); err != nil {
		t.Fatal(err)
	}
	rt, err := svc.Hub.RoundTripper("m-1", 1)
	if err != nil {
		t.Fatal(err)
	}
	r := &remote{Front: frontendtest.New(), Service: svc, rt: rt}
	for _, piece := range pieces() {
		r.bytes += int64(len(piece))
	}
	r.bytes *= int64(batches)
	return r
}

// Query implements service.Frontend.
func (r *remote) Query(ctx context.Context, in service.QueryInput) (*service.Result, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://member"+memberapi.PathQuery+"?"+in.SQL, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := r.rt.RoundTrip(req)
	if err != nil {
		return nil, errs.As(err)
	}
	return &service.Result{QueryID: "q", Body: resp.Body, Finish: func(error) core.Query {
		resp.Body.Close()
		return core.Query{}
	}}, nil
}

// memberRole answers until its standard input ends.
func memberRole(doc json.RawMessage) error {
	var with joining
	if err := json.Unmarshal(doc, &with); err != nil {
		return err
	}
	dial, err := relayed(with.Address)
	if err != nil {
		return err
	}
	keeper, err := identity.New(identity.KeeperOptions{
		Role: memberapi.RoleMember, Name: "m-1", Token: core.NewSecret(with.Token), CAPEM: with.CA,
		Dial: dial, JoinTimeout: tunneltest.Patience,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	if err := keeper.Join(ctx); err != nil {
		return err
	}
	agent, err := tunnel.NewAgent(tunnel.AgentOptions{Dial: dial, TLS: keeper.TLSConfig, Handler: replay(with.Batches, with.Pace)})
	if err != nil {
		return err
	}
	return agent.Run(ctx)
}

// relayed runs a host's relay to the service and returns how to dial it.
func relayed(to string) (func(ctx context.Context) (net.Conn, error), error) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, addr string) (*net.TCPConn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
	r, err := relay.New(relay.Options{
		Listener: ln, Dial: func(ctx context.Context) (*net.TCPConn, error) { return dial(ctx, to) },
		Known: func(netip.Addr) bool { return true }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	go func() { _ = r.Run(context.Background()) }() // it ends with the process
	return func(ctx context.Context) (net.Conn, error) { return dial(ctx, ln.Addr().String()) }, nil
}

// replay answers the query "short" with one small batch, and any other with many large
// ones, in the pieces in which members write.
func replay(batches int, pace time.Duration) http.Handler {
	large, small := pieces(), frontendtest.Numbers(1, 1)
	schema, _ := arrowipc.EncodeSchema(lineitem())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", memberapi.TrailerStatus)
		defer func() { w.Header().Set(memberapi.TrailerStatus, memberapi.StatusOK) }()
		if r.URL.RawQuery == "short" {
			_, _ = w.Write(small)
			_ = http.NewResponseController(w).Flush() // in chunks, as members send
			return
		}
		_, _ = w.Write(schema)
		begun := time.Now()
		for i := range batches {
			time.Sleep(time.Until(begun.Add(time.Duration(i) * pace)))
			for _, p := range large {
				if _, err := w.Write(p); err != nil {
					return
				}
			}
		}
		_ = arrowipc.WriteEOS(w)
	})
}

// pieces is a batch of about a megabyte, cut as internal/gateway does: small writes
// gather, large ones go by themselves.
func pieces() [][]byte {
	batch := lineitemBatch(5860)
	defer batch.Release()
	c := &cutter{}
	w := ipc.NewWriterWithPayloadWriter(c, ipc.WithSchema(batch.Schema()))
	if err := w.Write(batch); err != nil {
		panic(err)
	}
	c.cut()
	return c.pieces
}

type cutter struct {
	pieces  [][]byte
	waiting []byte
	schema  bool
}

func (c *cutter) Start() error { return nil }
func (c *cutter) Close() error { return nil }

func (c *cutter) WritePayload(p ipc.Payload) error {
	if !c.schema {
		c.schema = true
		return nil
	}
	_, err := p.WritePayload(c)
	return err
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) < 16<<10 {
		c.waiting = append(c.waiting, p...)
		return len(p), nil
	}
	c.cut()
	c.pieces = append(c.pieces, append([]byte(nil), p...))
	return len(p), nil
}

func (c *cutter) cut() {
	if len(c.waiting) > 0 {
		c.pieces, c.waiting = append(c.pieces, c.waiting), nil
	}
}

// lineitem is a table of the shape of TPC-H's.
func lineitem() *arrow.Schema {
	var fields []arrow.Field
	add := func(n int, t arrow.DataType) {
		for range n {
			fields = append(fields, arrow.Field{Name: fmt.Sprint("c", len(fields)), Type: t})
		}
	}
	add(4, arrow.PrimitiveTypes.Int32)
	add(4, &arrow.Decimal128Type{Precision: 15, Scale: 2})
	add(2, arrow.BinaryTypes.String)
	add(3, arrow.FixedWidthTypes.Date32)
	add(3, arrow.BinaryTypes.String)
	return arrow.NewSchema(fields, nil)
}

func lineitemBatch(rows int) arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, lineitem())
	defer b.Release()
	texts := map[int]string{8: "A", 9: "F", 13: "DELIVER IN PERSON        ", 14: "RAIL      ", 15: "a comment of some length so"}
	for i := range rows {
		for j, f := range b.Fields() {
			switch f := f.(type) {
			case *array.Int32Builder:
				f.Append(int32(i * (j + 7919)))
			case *array.Decimal128Builder:
				f.Append(decimal128.FromI64(int64(i) * 104729))
			case *array.Date32Builder:
				f.Append(arrow.Date32(i))
			case *array.StringBuilder:
				f.Append(texts[j])
			}
		}
	}
	return b.NewRecordBatch()
}

// fetching is what a client process needs.
type fetching struct {
	Address string
	Times   int
	Want    int64 // bytes at least
}

func flightRole(doc json.RawMessage) error {
	var with fetching
	if err := json.Unmarshal(doc, &with); err != nil {
		return err
	}
	c, err := dialPlain(with.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := metadata.NewOutgoingContext(context.Background(), callHeaders())
	info, err := c.Execute(ctx, "bulk")
	if err != nil {
		return err
	}
	for range with.Times {
		r, err := c.DoGet(ctx, info.Endpoint[0].Ticket)
		if err != nil {
			return err
		}
		var got int64
		for r.Next() {
			for _, col := range r.RecordBatch().Columns() {
				for _, b := range col.Data().Buffers() {
					if b != nil {
						got += int64(b.Len())
					}
				}
			}
		}
		r.Release()
		if r.Err() != nil {
			return r.Err()
		}
		if got < with.Want {
			return fmt.Errorf("%d bytes of %d came", got, with.Want)
		}
	}
	return nil
}

func shortRole(doc json.RawMessage) error {
	var with fetching
	if err := json.Unmarshal(doc, &with); err != nil {
		return err
	}
	c, err := dialPlain(with.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := metadata.NewOutgoingContext(context.Background(), callHeaders())
	for range with.Times {
		info, err := c.Execute(ctx, "short")
		if err != nil {
			return err
		}
		n, err := drain(ctx, c, info.Endpoint[0].Ticket)
		if err != nil {
			return err
		}
		if n != 1 {
			return fmt.Errorf("%d rows came, want 1", n)
		}
	}
	return nil
}

func httpRole(doc json.RawMessage) error {
	var with fetching
	if err := json.Unmarshal(doc, &with); err != nil {
		return err
	}
	for range with.Times {
		if err := httpFetch(with); err != nil {
			return err
		}
	}
	return nil
}

func httpFetch(with fetching) error {
	body, _ := json.Marshal(map[string]string{"source": "orders", "sql": "bulk"})
	req, err := http.NewRequest(http.MethodPost, "http://"+with.Address+"/v1/query", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+frontendtest.Token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/vnd.apache.arrow.stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
	if err == nil && n < with.Want {
		err = fmt.Errorf("status %s: %d bytes of %d came", resp.Status, n, with.Want)
	}
	return err
}

// BenchmarkPath moves 538 MB from a member to a client, each in a process of its own, and
// counts what the service uses between them: TLS, tunnel and front end.
func BenchmarkPath(b *testing.B) {
	const batches = 512
	for _, way := range []string{"flight", "http", "flight paced", "http paced"} {
		b.Run(way, func(b *testing.B) {
			way, paced := strings.CutSuffix(way, " paced")
			pace := time.Duration(0)
			if paced {
				pace = 8 * time.Millisecond
			}
			r := startRemote(b, batches, pace)
			addr := frontAddress(b, r, way)
			b.SetBytes(r.bytes)
			measured(b, process(b, way, fetching{addr, b.N, r.bytes * 9 / 10}))
		})
	}
}

// BenchmarkPathShort is GetFlightInfo and DoGet of one row, one after the other.
func BenchmarkPathShort(b *testing.B) {
	r := startRemote(b, 1, 0)
	addr := frontAddress(b, r, "flight")
	measured(b, process(b, "flight short", fetching{addr, b.N, 0}))
}

// measured runs a client and reports what both sides used.
func measured(b *testing.B, client *exec.Cmd) {
	out, err := client.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	before, reads, writes := cpu(), calls(b, "syscr"), calls(b, "syscw")
	if err := client.Start(); err != nil {
		b.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, out) // until it ends; what it did counts as ours once it is waited for
	b.ReportMetric((cpu()-before).Seconds()*1000/float64(b.N), "service-cpu-ms/op")
	b.ReportMetric((calls(b, "syscr")-reads)/float64(b.N), "service-reads/op")
	b.ReportMetric((calls(b, "syscw")-writes)/float64(b.N), "service-writes/op")
	if err := client.Wait(); err != nil {
		b.Fatal(err)
	}
	used := client.ProcessState.UserTime() + client.ProcessState.SystemTime()
	b.ReportMetric(used.Seconds()*1000/float64(b.N), "client-cpu-ms/op")
}

// calls is how many system calls of a kind this process has made.
func calls(b *testing.B, name string) float64 {
	doc, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Fatal(err)
	}
	var n float64
	for line := range strings.Lines(string(doc)) {
		if _, err := fmt.Sscanf(line, name+": %f", &n); err == nil {
			return n
		}
	}
	return n
}

// frontAddress serves a front end and returns where.
func frontAddress(b *testing.B, r *remote, way string) string {
	b.Helper()
	if way == "flight" {
		return serveFront(b, r)
	}
	log := slog.New(slog.DiscardHandler)
	srv, err := httpapi.Listen(httpapi.ServerOptions{
		Handler: httpapi.New(httpapi.Options{Frontend: r, Logger: log}), Logger: log, Address: "127.0.0.1:0", Grace: time.Second,
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return srv.Addr().String()
}

// serveFront runs a Server for any front end.
func serveFront(b *testing.B, f service.Frontend) string {
	b.Helper()
	s, err := New(Options{Frontend: f, Logger: slog.New(slog.DiscardHandler), Version: "1.2.3", Grace: time.Second})
	if err != nil {
		b.Fatal(err)
	}
	l, err := s.Listen("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return l.Addr().String()
}

func dialPlain(addr string) (*flightsql.Client, error) {
	return flightsql.NewClient(addr, nil, nil, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func callHeaders() metadata.MD {
	return metadata.Pairs("authorization", "Bearer "+frontendtest.Token, HeaderSource, "orders")
}
