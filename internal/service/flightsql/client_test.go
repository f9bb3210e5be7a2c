package flightsql

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

// client is arrow-go's own client.
func client(t testing.TB, addr string, opts ...grpc.DialOption) *flightsql.Client {
	t.Helper()
	c, err := flightsql.NewClient(addr, nil, nil, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// outgoing is a context with the good token and a data source.
func outgoing(t testing.TB, pairs ...string) context.Context {
	pairs = append([]string{"authorization", "Bearer " + frontendtest.Token, HeaderSource, "orders"}, pairs...)
	return metadata.NewOutgoingContext(t.Context(), metadata.Pairs(pairs...))
}

// trailerOf runs a statement that fails and returns its trailer.
func trailerOf(t testing.TB, addr, sql string) metadata.MD {
	t.Helper()
	c := client(t, addr)
	info, err := c.Execute(outgoing(t), sql)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := c.Client.DoGet(outgoing(t), info.Endpoint[0].Ticket)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	return stream.Trailer()
}

// drain reads a ticket's result and returns the number of rows.
func drain(ctx context.Context, c *flightsql.Client, ticket *flight.Ticket) (rows int64, err error) {
	r, err := c.DoGet(ctx, ticket)
	if err != nil {
		return 0, err
	}
	defer r.Release()
	for r.Next() {
		rows += r.RecordBatch().NumRows()
	}
	return rows, r.Err()
}

func wantCode(t *testing.T, what string, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: %v, want %s", what, err, code)
	}
}

func TestTicketsAreTheirCallers(t *testing.T) {
	front := frontendtest.New()
	front.On("numbers", frontendtest.Whole(frontendtest.Numbers(1, 5)))
	now := time.Now()
	s, addr := serve(t, front, func(o *Options) { o.Now = func() time.Time { return now } })
	c := client(t, addr)
	info, err := c.Execute(outgoing(t), "numbers")
	if err != nil {
		t.Fatal(err)
	}
	ticket := info.Endpoint[0].Ticket
	if rows, err := drain(outgoing(t), c, ticket); err != nil || rows != 5 {
		t.Errorf("%d rows, %v", rows, err)
	}
	if strings.Contains(string(ticket.Ticket), "numbers") {
		t.Error("the ticket shows its SQL")
	}
	_, err = drain(outgoing(t, "authorization", "Bearer "+frontendtest.OtherToken), c, ticket)
	if err != nil { // two authorization headers: the first counts
		t.Error(err)
	}
	other := metadata.NewOutgoingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+frontendtest.OtherToken))
	_, err = drain(other, c, ticket)
	wantCode(t, "another principal", err, codes.NotFound)
	_, err = drain(t.Context(), c, ticket)
	wantCode(t, "nobody", err, codes.Unauthenticated)
	forged := &flight.Ticket{Ticket: append([]byte(nil), ticket.Ticket...)}
	forged.Ticket[len(forged.Ticket)-1] ^= 1
	_, err = drain(outgoing(t), c, forged)
	wantCode(t, "a changed ticket", err, codes.NotFound)
	command := &pb.CommandGetCatalogs{}
	raw, _ := proto.Marshal(command)
	_, err = drain(outgoing(t), c, &flight.Ticket{Ticket: raw})
	wantCode(t, "no ticket", err, codes.NotFound)
	now = now.Add(s.opts.TicketLife + time.Second)
	_, err = drain(outgoing(t), c, ticket)
	wantCode(t, "an expired ticket", err, codes.NotFound)
}

func TestCancelFlightInfo(t *testing.T) {
	front := frontendtest.New()
	hang := frontendtest.Long(1, 10)
	hang.Tail, hang.Block = nil, true
	front.On("hang", hang)
	_, addr := serve(t, front, nil)
	c := client(t, addr)
	for _, cancel := range []func(context.Context, *flight.FlightInfo) error{
		func(ctx context.Context, info *flight.FlightInfo) error {
			res, err := c.CancelFlightInfo(ctx, &flight.CancelFlightInfoRequest{Info: info})
			if err == nil && res.Status != flight.CancelStatusCancelled {
				err = fmt.Errorf("status %s", res.Status)
			}
			return err
		},
		func(ctx context.Context, info *flight.FlightInfo) error {
			res, err := c.CancelQuery(ctx, info) //nolint:staticcheck // older clients call it
			if err == nil && res != flightsql.CancelResultCancelled {
				err = fmt.Errorf("result %v", res)
			}
			return err
		},
	} {
		info, err := c.Execute(outgoing(t), "hang")
		if err != nil {
			t.Fatal(err)
		}
		run, end := context.WithTimeout(outgoing(t), 60*time.Second)
		defer end()
		r, err := c.DoGet(run, info.Endpoint[0].Ticket)
		if err != nil || !r.Next() {
			t.Fatalf("no rows: %v", err)
		}
		other := metadata.NewOutgoingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+frontendtest.OtherToken))
		wantCode(t, "another principal cancels", cancel(other, info), codes.NotFound)
		if err := cancel(outgoing(t), info); err != nil {
			t.Fatal(err)
		}
		for r.Next() {
		}
		wantCode(t, "the query", r.Err(), codes.Canceled)
		if !front.WaitClosed(30 * time.Second) {
			t.Fatal("a cancelled query goes on")
		}
		r.Release()
		again, stop := context.WithTimeout(outgoing(t), 60*time.Second)
		_, err = drain(again, c, info.Endpoint[0].Ticket)
		wantCode(t, "its ticket, again", err, codes.Canceled)
		stop()
	}
	if !front.WaitClosed(30 * time.Second) {
		t.Error("a cancelled query goes on")
	}
}

func TestSchemas(t *testing.T) {
	front := frontendtest.New()
	dataset, _ := arrowipc.EncodeSchema(frontendtest.NumbersSchema())
	answer := frontendtest.Whole(frontendtest.Numbers(1, 1))
	answer.Prepared.Dataset = dataset
	front.On("numbers", answer)
	front.On("delete", frontendtest.Answer{Head: counts(1)})
	_, addr := serve(t, front, nil)
	c := client(t, addr)
	schemaOf := func(sql string) *arrow.Schema {
		res, err := c.GetExecuteSchema(outgoing(t), sql)
		if err != nil {
			t.Fatal(err)
		}
		schema, err := flight.DeserializeSchema(res.GetSchema(), memory.DefaultAllocator)
		if err != nil {
			t.Fatal(err)
		}
		return schema
	}
	if got := schemaOf("numbers"); !got.Equal(frontendtest.NumbersSchema()) {
		t.Errorf("numbers: %s", got)
	}
	if got := schemaOf("delete"); got.NumFields() != 0 {
		t.Errorf("delete: %s", got)
	}
	prep, err := c.Prepare(outgoing(t), "numbers")
	if err != nil {
		t.Fatal(err)
	}
	if update, known := prep.IsUpdate(); update || !known || !prep.DatasetSchema().Equal(frontendtest.NumbersSchema()) {
		t.Errorf("prepared: update %v %v, %s", update, known, prep.DatasetSchema())
	}
	info, err := prep.Execute(outgoing(t))
	if err != nil || string(info.Schema) != string(dataset) {
		t.Errorf("the FlightInfo of a prepared statement has no schema: %v", err)
	}
	if res, err := prep.GetSchema(outgoing(t)); err != nil || string(res.GetSchema()) != string(dataset) {
		t.Errorf("GetSchema of a prepared statement: %v", err)
	}
	if err := prep.Close(outgoing(t)); err != nil {
		t.Error(err)
	}
	if rows, err := drain(outgoing(t), c, info.Endpoint[0].Ticket); err != nil || rows != 1 {
		t.Errorf("a ticket outlives its statement: %d rows, %v", rows, err)
	}
	upd, err := c.Prepare(outgoing(t), "delete")
	if err != nil {
		t.Fatal(err)
	}
	if update, known := upd.IsUpdate(); !update || !known || upd.DatasetSchema() != nil {
		t.Errorf("prepared update: %v %v %v", update, known, upd.DatasetSchema())
	}
}

func TestEveryMetadataCommand(t *testing.T) {
	front := frontendtest.New()
	_, addr := serve(t, front, nil)
	c := client(t, addr)
	some, table := "c", "t"
	ref := flightsql.TableRef{Catalog: &some, DBSchema: &some, Table: table}
	wantRef := memberapi.TableRef{Catalog: &some, Schema: &some, Table: table}
	kind := int32(4)
	for _, m := range []struct {
		want   memberapi.MetadataRequest
		schema *arrow.Schema
		info   func(context.Context) (*flight.FlightInfo, error)
	}{
		{memberapi.MetadataRequest{Kind: memberapi.MetaCatalogs}, schema_ref.Catalogs,
			func(ctx context.Context) (*flight.FlightInfo, error) { return c.GetCatalogs(ctx) }},
		{memberapi.MetadataRequest{Kind: memberapi.MetaSchemas, Catalog: &some, SchemaPattern: &table}, schema_ref.DBSchemas,
			func(ctx context.Context) (*flight.FlightInfo, error) {
				return c.GetDBSchemas(ctx, &flightsql.GetDBSchemasOpts{Catalog: &some, DbSchemaFilterPattern: &table})
			}},
		{memberapi.MetadataRequest{Kind: memberapi.MetaTables, TablePattern: &some, TableTypes: []string{"view"}, IncludeSchema: true}, schema_ref.TablesWithIncludedSchema,
			func(ctx context.Context) (*flight.FlightInfo, error) {
				return c.GetTables(ctx, &flightsql.GetTablesOpts{TableNameFilterPattern: &some, TableTypes: []string{"view"}, IncludeSchema: true})
			}},
		{memberapi.MetadataRequest{Kind: memberapi.MetaTableTypes}, schema_ref.TableTypes,
			func(ctx context.Context) (*flight.FlightInfo, error) { return c.GetTableTypes(ctx) }},
		{memberapi.MetadataRequest{Kind: memberapi.MetaTypeInfo, DataType: &kind}, schema_ref.XdbcTypeInfo,
			func(ctx context.Context) (*flight.FlightInfo, error) { return c.GetXdbcTypeInfo(ctx, &kind) }},
		{memberapi.MetadataRequest{Kind: memberapi.MetaPrimaryKeys, Table: wantRef}, schema_ref.PrimaryKeys,
			func(ctx context.Context) (*flight.FlightInfo, error) { return c.GetPrimaryKeys(ctx, ref) }},
		{memberapi.MetadataRequest{Kind: memberapi.MetaExportedKeys, Table: wantRef}, schema_ref.ExportedKeys,
			func(ctx context.Context) (*flight.FlightInfo, error) { return c.GetExportedKeys(ctx, ref) }},
		{memberapi.MetadataRequest{Kind: memberapi.MetaImportedKeys, Table: wantRef}, schema_ref.ImportedKeys,
			func(ctx context.Context) (*flight.FlightInfo, error) { return c.GetImportedKeys(ctx, ref) }},
		{memberapi.MetadataRequest{Kind: memberapi.MetaCrossReference, Table: wantRef, Other: memberapi.TableRef{Table: "f"}}, schema_ref.CrossReference,
			func(ctx context.Context) (*flight.FlightInfo, error) {
				return c.GetCrossReference(ctx, ref, flightsql.TableRef{Table: "f"})
			}},
	} {
		t.Run(m.want.Kind, func(t *testing.T) {
			stream := frontendtest.Stream(m.schema)
			front.On("metadata:"+m.want.Kind, frontendtest.Whole(stream))
			info, err := m.info(outgoing(t))
			if err != nil {
				t.Fatal(err)
			}
			if schema, err := flight.DeserializeSchema(info.Schema, memory.DefaultAllocator); err != nil || !schema.Equal(m.schema) {
				t.Errorf("schema %s, %v", schema, err)
			}
			r, err := c.DoGet(outgoing(t), info.Endpoint[0].Ticket)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Release()
			if err := compare(r, stream); err != nil {
				t.Error(err)
			}
			reqs := front.MetadataRequests()
			if diff := cmp.Diff(m.want, reqs[len(reqs)-1]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSQLInfo(t *testing.T) {
	_, addr := serve(t, frontendtest.New(), nil)
	c := client(t, addr)
	noSource := metadata.NewOutgoingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+frontendtest.Token))
	read := func(codes ...flightsql.SqlInfo) map[uint32]string {
		info, err := c.GetSqlInfo(noSource, codes)
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.DoGet(noSource, info.Endpoint[0].Ticket)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Release()
		got := map[uint32]string{}
		for r.Next() {
			names := r.RecordBatch().Column(0).(*array.Uint32)
			values := r.RecordBatch().Column(1).(*array.DenseUnion)
			for i := range names.Len() {
				got[names.Value(i)] = values.Field(values.ChildID(i)).ValueStr(int(values.ValueOffset(i)))
			}
		}
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		return got
	}
	all := read()
	if len(all) != len(sqlInfo("")) || all[0] != "Sluice" || all[1] != "1.2.3" || all[2] != arrow.PkgVersion || all[8] != "0" {
		t.Errorf("%v", all)
	}
	if some := read(flightsql.SqlInfoFlightSqlServerCancel, flightsql.SqlInfoKeywords, 60000); len(some) != 1 || some[9] != "true" {
		t.Errorf("%v", some)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	_, addr := serve(t, frontendtest.New(), nil)
	c := client(t, addr)
	ctx := outgoing(t)
	_, err := c.BeginTransaction(ctx)
	wantCode(t, "BeginTransaction", err, codes.Unimplemented)
	if !strings.Contains(err.Error(), "transactions are not supported") {
		t.Error(err)
	}
	_, err = c.PrepareSubstrait(ctx, flightsql.SubstraitPlan{Plan: []byte("x")})
	wantCode(t, "PrepareSubstrait", err, codes.Unimplemented)
	_, err = c.ExecuteSubstrait(ctx, flightsql.SubstraitPlan{Plan: []byte("x")})
	wantCode(t, "ExecuteSubstrait", err, codes.Unimplemented)
	_, err = c.RenewFlightEndpoint(ctx, &flight.RenewFlightEndpointRequest{Endpoint: &flight.FlightEndpoint{}})
	wantCode(t, "RenewFlightEndpoint", err, codes.Unimplemented)
	_, err = c.Execute(ctx, " ")
	wantCode(t, "an empty statement", err, codes.InvalidArgument)
	_, err = c.Execute(ctx, strings.Repeat("x", maxSQL+1))
	wantCode(t, "a long statement", err, codes.InvalidArgument)
	_, err = c.Execute(outgoing(t, HeaderClass, "batch"), "select")
	wantCode(t, "a class", err, codes.InvalidArgument)
	_, err = c.Client.GetFlightInfo(ctx, &flight.FlightDescriptor{Path: []string{"x"}})
	wantCode(t, "plain Flight", err, codes.InvalidArgument)
	flights, err := c.Client.ListFlights(ctx, &flight.Criteria{})
	if err == nil {
		_, err = flights.Recv()
	}
	wantCode(t, "ListFlights", err, codes.Unimplemented)
	put, err := c.Client.DoPut(ctx)
	if err == nil {
		err = put.Send(&flight.FlightData{DataBody: []byte("no descriptor at all")})
	}
	if err == nil {
		_, err = put.Recv()
	}
	wantCode(t, "DoPut without a descriptor", err, codes.InvalidArgument)
	for _, act := range []string{"CancelFlightInfo", "CreatePreparedStatement", "SetSessionOptions", "Teapot"} {
		s, err := c.Client.DoAction(ctx, &flight.Action{Type: act, Body: []byte{0xFF, 0xFF}})
		if err == nil {
			_, err = s.Recv()
		}
		if code := status.Code(err); code != codes.InvalidArgument && code != codes.Unimplemented {
			t.Errorf("%s with a broken body: %v", act, err)
		}
	}
	info, err := c.ExecutePoll(ctx, "select", nil)
	if err != nil || info.GetFlightDescriptor() != nil || len(info.GetInfo().GetEndpoint()) != 1 {
		t.Errorf("PollFlightInfo: %v", err)
	}
}

func TestEveryWayToSignIn(t *testing.T) {
	front := frontendtest.New()
	_, addr := serve(t, front, nil)
	c := client(t, addr)
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+frontendtest.Token))
	for name, md := range map[string]metadata.MD{
		"bearer":           metadata.Pairs("authorization", "Bearer "+frontendtest.Token),
		"bearer, any case": metadata.Pairs("authorization", "bEARER  "+frontendtest.Token),
		"basic":            metadata.Pairs("authorization", basic),
		"basic, unpadded":  metadata.Pairs("authorization", strings.TrimRight(basic, "=")),
		"flight's own":     metadata.Pairs("auth-token-bin", frontendtest.Token),
	} {
		if _, err := c.GetSqlInfo(metadata.NewOutgoingContext(t.Context(), md), nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, md := range map[string]metadata.MD{
		"nothing":        {},
		"the bare token": metadata.Pairs("authorization", frontendtest.Token),
		"not base64":     metadata.Pairs("authorization", "Basic ***"),
		"no password":    metadata.Pairs("authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(frontendtest.Token))),
	} {
		_, err := c.GetSqlInfo(metadata.NewOutgoingContext(t.Context(), md), nil)
		wantCode(t, name, err, codes.Unauthenticated)
	}
	// A client that reads one message and then the trailer, as Arrow's own does, must not
	// find a message: the trailer is there once the call has ended.
	hs, err := c.Client.Handshake(metadata.NewOutgoingContext(t.Context(), metadata.Pairs("authorization", basic)))
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := hs.Recv(); err != io.EOF || len(hs.Trailer().Get("authorization")) == 0 {
		t.Errorf("handshake with basic: %v, %v", resp, err)
	}
	payload, _ := proto.Marshal(&flight.BasicAuth{Username: "me", Password: frontendtest.Token})
	hs, err = c.Client.Handshake(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := hs.Send(&flight.HandshakeRequest{Payload: payload}); err != nil {
		t.Fatal(err)
	}
	if resp, err := hs.Recv(); err != nil || string(resp.GetPayload()) != frontendtest.Token {
		t.Errorf("handshake with a payload: %v", err)
	}
	_ = hs.CloseSend()
	if _, err := hs.Recv(); err == nil {
		t.Error("the handshake does not end")
	}
}
