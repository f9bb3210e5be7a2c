package flightsql

import (
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// metadataRequest translates a command that asks for a source's own description, and
// names the schema of the answer.
func metadataRequest(cmd proto.Message) (memberapi.MetadataRequest, *arrow.Schema, bool) {
	switch c := cmd.(type) {
	case *pb.CommandGetCatalogs:
		return memberapi.MetadataRequest{Kind: memberapi.MetaCatalogs}, schema_ref.Catalogs, true
	case *pb.CommandGetDbSchemas:
		return memberapi.MetadataRequest{
			Kind: memberapi.MetaSchemas, Catalog: c.Catalog, SchemaPattern: c.DbSchemaFilterPattern,
		}, schema_ref.DBSchemas, true
	case *pb.CommandGetTables:
		schema := schema_ref.Tables
		if c.GetIncludeSchema() {
			schema = schema_ref.TablesWithIncludedSchema
		}
		return memberapi.MetadataRequest{
			Kind: memberapi.MetaTables, Catalog: c.Catalog, SchemaPattern: c.DbSchemaFilterPattern,
			TablePattern: c.TableNameFilterPattern, TableTypes: c.GetTableTypes(), IncludeSchema: c.GetIncludeSchema(),
		}, schema, true
	case *pb.CommandGetTableTypes:
		return memberapi.MetadataRequest{Kind: memberapi.MetaTableTypes}, schema_ref.TableTypes, true
	case *pb.CommandGetXdbcTypeInfo:
		return memberapi.MetadataRequest{Kind: memberapi.MetaTypeInfo, DataType: c.DataType}, schema_ref.XdbcTypeInfo, true
	}
	return keysRequest(cmd)
}

// keysRequest translates the commands about keys. In a cross reference, Table holds
// the primary key and Other the foreign one.
func keysRequest(cmd proto.Message) (memberapi.MetadataRequest, *arrow.Schema, bool) {
	switch c := cmd.(type) {
	case *pb.CommandGetPrimaryKeys:
		return keysOf(memberapi.MetaPrimaryKeys, c.Catalog, c.DbSchema, c.GetTable()), schema_ref.PrimaryKeys, true
	case *pb.CommandGetExportedKeys:
		return keysOf(memberapi.MetaExportedKeys, c.Catalog, c.DbSchema, c.GetTable()), schema_ref.ExportedKeys, true
	case *pb.CommandGetImportedKeys:
		return keysOf(memberapi.MetaImportedKeys, c.Catalog, c.DbSchema, c.GetTable()), schema_ref.ImportedKeys, true
	case *pb.CommandGetCrossReference:
		req := keysOf(memberapi.MetaCrossReference, c.PkCatalog, c.PkDbSchema, c.GetPkTable())
		req.Other = memberapi.TableRef{Catalog: c.FkCatalog, Schema: c.FkDbSchema, Table: c.GetFkTable()}
		return req, schema_ref.CrossReference, true
	}
	return memberapi.MetadataRequest{}, nil, false
}

func keysOf(kind string, catalog, schema *string, table string) memberapi.MetadataRequest {
	return memberapi.MetadataRequest{Kind: kind, Table: memberapi.TableRef{Catalog: catalog, Schema: schema, Table: table}}
}
