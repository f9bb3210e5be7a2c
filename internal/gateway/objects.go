package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// object is a table as adbc.Connection.GetObjects tells it, with where it stands; at
// lesser depths only the parts that were asked for are set.
type object struct {
	catalog, schema *string
	table           objectTable
}

// The nested columns of adbc.GetObjectsSchema, as far as they are used.
type (
	objectCatalog struct {
		Name    *string        `json:"catalog_name"`
		Schemas []objectSchema `json:"catalog_db_schemas"`
	}
	objectSchema struct {
		Name   *string       `json:"db_schema_name"`
		Tables []objectTable `json:"db_schema_tables"`
	}
	objectTable struct {
		Name        string             `json:"table_name"`
		Type        string             `json:"table_type"`
		Constraints []objectConstraint `json:"table_constraints"`
	}
	objectConstraint struct {
		Name    *string       `json:"constraint_name"`
		Type    string        `json:"constraint_type"`
		Columns []string      `json:"constraint_column_names"`
		Usage   []objectUsage `json:"constraint_column_usage"`
	}
	objectUsage struct {
		Catalog *string `json:"fk_catalog"`
		Schema  *string `json:"fk_db_schema"`
		Table   string  `json:"fk_table"`
		Column  string  `json:"fk_column_name"`
	}
)

// readObjects asks for what a request is about. Filters that ADBC reads as patterns but
// Flight SQL as names are checked again here.
func readObjects(ctx context.Context, conn adbc.Connection, req memberapi.MetadataRequest) ([]object, error) {
	var depth adbc.ObjectDepth
	catalog, schema, table := req.Catalog, req.SchemaPattern, req.TablePattern
	switch req.Kind {
	case memberapi.MetaCatalogs:
		depth, catalog, schema, table = adbc.ObjectDepthCatalogs, nil, nil, nil
	case memberapi.MetaSchemas:
		depth, table = adbc.ObjectDepthDBSchemas, nil
	case memberapi.MetaTables:
		depth = adbc.ObjectDepthTables
	default: // keys: a foreign key may come from anywhere
		depth, catalog, schema, table = adbc.ObjectDepthAll, nil, nil, nil
	}
	reader, err := conn.GetObjects(ctx, depth, catalog, schema, table, nil, req.TableTypes)
	if err != nil {
		return nil, err
	}
	defer reader.Release()
	catalogs, err := decodeRows[objectCatalog](reader)
	if err != nil {
		return nil, err
	}
	catalogs = slices.DeleteFunc(catalogs, func(c objectCatalog) bool { return !same(catalog, c.Name) })
	return flatten(catalogs, depth), nil
}

// flatten lists the objects at a depth in order of their names.
func flatten(catalogs []objectCatalog, depth adbc.ObjectDepth) []object {
	var all []object
	for _, c := range catalogs {
		if depth == adbc.ObjectDepthCatalogs {
			all = append(all, object{catalog: c.Name})
			continue
		}
		for _, s := range c.Schemas {
			if depth == adbc.ObjectDepthDBSchemas {
				all = append(all, object{catalog: c.Name, schema: s.Name})
				continue
			}
			for _, t := range s.Tables {
				all = append(all, object{catalog: c.Name, schema: s.Name, table: t})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b object) int {
		return cmp.Or(cmp.Compare(text(a.catalog), text(b.catalog)), cmp.Compare(text(a.schema), text(b.schema)),
			cmp.Compare(a.table.Name, b.table.Name), cmp.Compare(a.table.Type, b.table.Type))
	})
	return all
}

// same reports whether a name is the one wanted; nil wants any, "" one without a name.
func same(want, name *string) bool { return want == nil || *want == text(name) }

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// is reports whether a table is the one that ref names.
func (o object) is(ref memberapi.TableRef) bool {
	return same(ref.Catalog, o.catalog) && same(ref.Schema, o.schema) && o.table.Name == ref.Table
}

// decodeRows reads every row of an Arrow result into a T.
func decodeRows[T any](reader array.RecordReader) ([]T, error) {
	var rows []T
	for reader.Next() {
		var doc bytes.Buffer
		if err := array.RecordToJSON(reader.RecordBatch(), &doc); err != nil {
			return nil, fmt.Errorf("read the driver's metadata: %w", err)
		}
		for d := json.NewDecoder(&doc); d.More(); {
			var row T
			if err := d.Decode(&row); err != nil {
				return nil, fmt.Errorf("read the driver's metadata: %w", err)
			}
			rows = append(rows, row)
		}
	}
	return rows, reader.Err()
}

// encodeRows makes an Arrow result of rows, whose JSON has the columns of schema.
func encodeRows[T any](schema *arrow.Schema, rows []T) (array.RecordReader, error) {
	if rows == nil {
		rows = []T{}
	}
	doc, err := json.Marshal(rows)
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	rec, _, err := array.RecordFromJSON(memory.DefaultAllocator, schema, bytes.NewReader(doc))
	if err != nil {
		return nil, fmt.Errorf("encode metadata: %w", err)
	}
	return oneBatch(rec, nil)
}

func catalogRows(objects []object) (array.RecordReader, error) {
	type row struct {
		Catalog string `json:"catalog_name"`
	}
	var rows []row
	for _, o := range objects {
		if o.catalog != nil {
			rows = append(rows, row{*o.catalog})
		}
	}
	return encodeRows(schema_ref.Catalogs, rows)
}

func schemaRows(objects []object) (array.RecordReader, error) {
	type row struct {
		Catalog *string `json:"catalog_name"`
		Schema  string  `json:"db_schema_name"`
	}
	var rows []row
	for _, o := range objects {
		if o.schema != nil {
			rows = append(rows, row{o.catalog, *o.schema})
		}
	}
	return encodeRows(schema_ref.DBSchemas, rows)
}

// tableRow is a row of schema_ref.Tables, or of TablesWithIncludedSchema.
type tableRow struct {
	Catalog *string `json:"catalog_name"`
	Schema  *string `json:"db_schema_name"`
	Table   string  `json:"table_name"`
	Type    string  `json:"table_type"`
	Columns []byte  `json:"table_schema,omitempty"`
}

func tableRows(ctx context.Context, conn adbc.Connection, objects []object, withSchema bool) (array.RecordReader, error) {
	rows := make([]tableRow, len(objects))
	for i, o := range objects {
		rows[i] = tableRow{o.catalog, o.schema, o.table.Name, o.table.Type, nil}
		if !withSchema {
			continue
		}
		columns, err := conn.GetTableSchema(ctx, o.catalog, o.schema, o.table.Name)
		if err != nil {
			return nil, err
		}
		rows[i].Columns, _ = arrowipc.EncodeSchema(columns)
	}
	if withSchema {
		return encodeRows(schema_ref.TablesWithIncludedSchema, rows)
	}
	return encodeRows(schema_ref.Tables, rows)
}
