package gateway

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// shop is what an ADBC driver tells of a database with a foreign key over two columns.
const shop = `[
 {"catalog_name":"shop","catalog_db_schemas":[
  {"db_schema_name":"sales","db_schema_tables":[
   {"table_name":"orders","table_type":"BASE TABLE","table_constraints":[
     {"constraint_name":"orders_pkey","constraint_type":"PRIMARY KEY","constraint_column_names":["region","id"]},
     {"constraint_name":"positive","constraint_type":"CHECK","constraint_column_names":["id"]}]},
   {"table_name":"lines","table_type":"BASE TABLE","table_constraints":[
     {"constraint_name":"lines_order","constraint_type":"FOREIGN KEY","constraint_column_names":["r","o"],
      "constraint_column_usage":[{"fk_catalog":"shop","fk_db_schema":"sales","fk_table":"orders","fk_column_name":"region"},
                                 {"fk_catalog":"shop","fk_db_schema":"sales","fk_table":"orders","fk_column_name":"id"}]}]},
   {"table_name":"big","table_type":"VIEW"}]},
  {"db_schema_name":"admin","db_schema_tables":[]}]},
 {"catalog_name":"xhop","catalog_db_schemas":[]},
 {"catalog_name":null,"catalog_db_schemas":[{"db_schema_name":null,"db_schema_tables":[{"table_name":"loose","table_type":"VIEW"}]}]}]`

func shopObjects(t *testing.T) func(adbc.ObjectDepth) (array.RecordReader, error) {
	return func(adbc.ObjectDepth) (array.RecordReader, error) {
		rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, adbc.GetObjectsSchema, strings.NewReader(shop))
		if err != nil {
			t.Error(err)
		}
		return oneBatch(rec, err)
	}
}

func TestMetadataFromAnyDriver(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, &fakeSource{objects: shopObjects(t)})
	ptr := func(s string) *string { return &s }
	orders := memberapi.TableRef{Catalog: ptr("shop"), Schema: ptr("sales"), Table: "orders"}
	lines := memberapi.TableRef{Table: "lines"}
	reference := `[{"pk_catalog_name":"shop","pk_db_schema_name":"sales","pk_table_name":"orders","pk_column_name":"region","fk_catalog_name":"shop","fk_db_schema_name":"sales","fk_table_name":"lines","fk_column_name":"r","key_sequence":1,"fk_key_name":"lines_order","pk_key_name":null,"update_rule":3,"delete_rule":3},
		{"pk_catalog_name":"shop","pk_db_schema_name":"sales","pk_table_name":"orders","pk_column_name":"id","fk_catalog_name":"shop","fk_db_schema_name":"sales","fk_table_name":"lines","fk_column_name":"o","key_sequence":2,"fk_key_name":"lines_order","pk_key_name":null,"update_rule":3,"delete_rule":3}]`
	for _, tt := range []struct {
		name   string
		req    memberapi.MetadataRequest
		schema *arrow.Schema
		want   string
	}{
		{"catalogs", memberapi.MetadataRequest{Kind: memberapi.MetaCatalogs}, schema_ref.Catalogs,
			`[{"catalog_name":"shop"},{"catalog_name":"xhop"}]`},
		{"schemas", memberapi.MetadataRequest{Kind: memberapi.MetaSchemas}, schema_ref.DBSchemas,
			`[{"catalog_name":"shop","db_schema_name":"admin"},{"catalog_name":"shop","db_schema_name":"sales"}]`},
		{"schemas of a catalog, not a pattern", memberapi.MetadataRequest{Kind: memberapi.MetaSchemas, Catalog: ptr("_hop")}, schema_ref.DBSchemas, `[]`},
		{"tables", memberapi.MetadataRequest{Kind: memberapi.MetaTables}, schema_ref.Tables,
			`[{"catalog_name":null,"db_schema_name":null,"table_name":"loose","table_type":"VIEW"},
			  {"catalog_name":"shop","db_schema_name":"sales","table_name":"big","table_type":"VIEW"},
			  {"catalog_name":"shop","db_schema_name":"sales","table_name":"lines","table_type":"BASE TABLE"},
			  {"catalog_name":"shop","db_schema_name":"sales","table_name":"orders","table_type":"BASE TABLE"}]`},
		{"tables without a catalog", memberapi.MetadataRequest{Kind: memberapi.MetaTables, Catalog: ptr("")}, schema_ref.Tables,
			`[{"catalog_name":null,"db_schema_name":null,"table_name":"loose","table_type":"VIEW"}]`},
		{"table types", memberapi.MetadataRequest{Kind: memberapi.MetaTableTypes}, schema_ref.TableTypes,
			`[{"table_type":"BASE TABLE"},{"table_type":"VIEW"}]`},
		{"primary keys", memberapi.MetadataRequest{Kind: memberapi.MetaPrimaryKeys, Table: orders}, schema_ref.PrimaryKeys,
			`[{"catalog_name":"shop","db_schema_name":"sales","table_name":"orders","column_name":"region","key_sequence":1,"key_name":"orders_pkey"},
			  {"catalog_name":"shop","db_schema_name":"sales","table_name":"orders","column_name":"id","key_sequence":2,"key_name":"orders_pkey"}]`},
		{"exported keys", memberapi.MetadataRequest{Kind: memberapi.MetaExportedKeys, Table: orders}, schema_ref.ExportedKeys, reference},
		{"imported keys", memberapi.MetadataRequest{Kind: memberapi.MetaImportedKeys, Table: lines}, schema_ref.ImportedKeys, reference},
		{"cross reference", memberapi.MetadataRequest{Kind: memberapi.MetaCrossReference, Table: orders, Other: lines}, schema_ref.CrossReference, reference},
		{"cross reference, the other way", memberapi.MetadataRequest{Kind: memberapi.MetaCrossReference, Table: lines, Other: orders}, schema_ref.CrossReference, `[]`},
		{"imported keys of a table without", memberapi.MetadataRequest{Kind: memberapi.MetaImportedKeys, Table: orders}, schema_ref.ImportedKeys, `[]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.Source = source
			schema, recs := records(t, post(t, t.Context(), url+memberapi.PathMetadata, tt.req))
			if !schema.Equal(tt.schema) {
				t.Errorf("schema %s, want %s", schema, tt.schema)
			}
			if diff := cmp.Diff(rowsOf(t, tt.want), rowsOf(t, asJSON(t, recs))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTablesWithSchemas(t *testing.T) {
	t.Parallel()
	url, _ := serve(t, &fakeSource{objects: shopObjects(t)})
	req := memberapi.MetadataRequest{Source: source, Kind: memberapi.MetaTables, IncludeSchema: true}
	schema, recs := records(t, post(t, t.Context(), url+memberapi.PathMetadata, req))
	if !schema.Equal(schema_ref.TablesWithIncludedSchema) || len(recs) != 1 {
		t.Fatalf("%s, %d batches", schema, len(recs))
	}
	for i := range int(recs[0].NumRows()) {
		columns, err := arrowipc.DecodeSchema(recs[0].Column(4).(*array.Binary).Value(i))
		if want := recs[0].Column(2).ValueStr(i) + "_id"; err != nil || columns.Field(0).Name != want {
			t.Errorf("row %d: %v, %v", i, columns, err)
		}
	}
}

// able is a database with the optional abilities; each marks its answer.
type able struct {
	*fakeDatabase
	asked *string
	bad   bool
}

func (a able) mark(how string, schema *arrow.Schema) (arrow.RecordBatch, error) {
	*a.asked = how
	if a.bad {
		schema = numbers
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	return b.NewRecordBatch(), nil
}

func (a able) PrimaryKeys(_ context.Context, ref memberapi.TableRef) (arrow.RecordBatch, error) {
	return a.mark("primary "+ref.Table, schema_ref.PrimaryKeys)
}

func (a able) ForeignKeys(_ context.Context, pk, fk *memberapi.TableRef) (arrow.RecordBatch, error) {
	name := func(r *memberapi.TableRef) string {
		if r == nil {
			return "any"
		}
		return r.Table
	}
	return a.mark("foreign "+name(pk)+" "+name(fk), schema_ref.ImportedKeys)
}

func (a able) TypeInfo(context.Context, *int32) (arrow.RecordBatch, error) {
	return a.mark("types", schema_ref.XdbcTypeInfo)
}

func (a able) Tables(_ context.Context, req memberapi.MetadataRequest) (array.RecordReader, error) {
	schema, _ := metaSchema(req)
	return oneBatch(a.mark("tables", schema))
}

func TestMetadataFromAConnectorThatCan(t *testing.T) {
	t.Parallel()
	var asked string
	url, _ := serve(t, &fakeSource{extend: func(d *fakeDatabase) adbc.Database { return able{d, &asked, false} }})
	bad, _ := serve(t, &fakeSource{extend: func(d *fakeDatabase) adbc.Database { return able{d, &asked, true} }})
	for kind, want := range map[string]string{
		memberapi.MetaTables:         "tables",
		memberapi.MetaPrimaryKeys:    "primary t",
		memberapi.MetaExportedKeys:   "foreign t any",
		memberapi.MetaImportedKeys:   "foreign any t",
		memberapi.MetaCrossReference: "foreign t o",
		memberapi.MetaTypeInfo:       "types",
	} {
		req := memberapi.MetadataRequest{Source: source, Kind: kind, Table: memberapi.TableRef{Table: "t"}, Other: memberapi.TableRef{Table: "o"}}
		schema, _ := records(t, post(t, t.Context(), url+memberapi.PathMetadata, req))
		if wantSchema, _ := metaSchema(req); !schema.Equal(wantSchema) || asked != want {
			t.Errorf("%s: asked %q, schema %s", kind, asked, schema)
		}
		if err := read(post(t, t.Context(), bad+memberapi.PathMetadata, req)).err; errs.ClassOf(err) != errs.Internal {
			t.Errorf("%s in another schema: %v", kind, err)
		}
	}
}

func rowsOf(t *testing.T, doc string) (rows []map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(doc), &rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

func asJSON(t *testing.T, recs []arrow.RecordBatch) string {
	t.Helper()
	all := []json.RawMessage{}
	for _, rec := range recs {
		doc, err := rec.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var rows []json.RawMessage
		if err := json.Unmarshal(doc, &rows); err != nil {
			t.Fatal(err)
		}
		all = append(all, rows...)
	}
	doc, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}
