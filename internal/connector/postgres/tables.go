package postgres

import (
	"bytes"
	"context"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// tableTypes are the kinds of table that this connector tells apart.
var tableTypes = []string{"TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE"}

// tablesFrom is what every listing of tables starts from: $1 is a pattern for the catalog, $2
// for the schema, $3 for the table, $4 an array of table types; null is any. System
// schemas are listed only where a pattern asks for schemas.
const tablesFrom = `
from (
	select c.oid, n.nspname, c.relname, case c.relkind when 'v' then 'VIEW' when 'm' then 'MATERIALIZED VIEW'
		when 'f' then 'FOREIGN TABLE' else 'TABLE' end as kind
	from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
	where c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relpersistence <> 't' and n.nspname <> 'pg_toast'
		and (n.nspname not in ('pg_catalog', 'information_schema') or $2::text is not null)
) t
where ($1::text is null or pg_catalog.current_database() like $1)
	and ($2::text is null or t.nspname like $2)
	and ($3::text is null or t.relname like $3)
	and ($4::text[] is null or t.kind = any($4))`

// tableFilter selects tables; nil parts select any.
type tableFilter struct {
	catalog, schema, table *string
	types                  []string
}

func (f tableFilter) args() []any {
	var types *string
	if len(f.types) > 0 {
		var quoted []string
		for _, t := range f.types {
			quoted = append(quoted, `"`+literalEscape.Replace(t)+`"`)
		}
		s := "{" + strings.Join(quoted, ",") + "}"
		types = &s
	}
	return []any{f.catalog, f.schema, f.table, types}
}

// Tables implements connector.TableReader.
func (db *database) Tables(ctx context.Context, req memberapi.MetadataRequest) (array.RecordReader, error) {
	filter := tableFilter{req.Catalog, req.SchemaPattern, req.TablePattern, req.TableTypes}
	var tables [][]*string
	var schemas map[string]*arrow.Schema
	err := db.withConn(ctx, nobody, func(ctx context.Context, c *conn) (err error) {
		tables, err = c.query(ctx, "select pg_catalog.current_database(), t.nspname, t.relname, t.kind, t.oid"+tablesFrom+
			" order by t.kind, t.nspname, t.relname", filter.args()...)
		if err == nil && req.IncludeSchema {
			schemas, err = db.tableSchemas(ctx, c, filter)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	schema := schema_ref.Tables
	if req.IncludeSchema {
		schema = schema_ref.TablesWithIncludedSchema
	}
	var rows [][]any
	for _, t := range tables {
		row := []any{t[0], t[1], t[2], t[3]}
		if req.IncludeSchema {
			b, err := schemaMessage(schemas[text(t[4])])
			if err != nil {
				return nil, err
			}
			row = append(row, b)
		}
		rows = append(rows, row)
	}
	return newRecordReader(schema, rows)
}

const columnsQuery = `
select t.oid, a.attname, a.atttypid, a.atttypmod, a.attnotnull` + tablesFrom1 + ` order by t.oid, a.attnum`

const tablesFrom1 = `
from (select t.oid ` + tablesFrom + `) t
join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped`

// tableSchemas returns the schemas of tables by their identifiers. Fields are what a
// query gives, and not nullable where the table says so.
func (db *database) tableSchemas(ctx context.Context, c *conn, filter tableFilter) (map[string]*arrow.Schema, error) {
	rows, err := c.query(ctx, columnsQuery, filter.args()...)
	if err != nil {
		return nil, err
	}
	var oids []uint32
	for _, r := range rows {
		oids = append(oids, number[uint32](text(r[2])))
	}
	if err := db.types.load(ctx, c, oids); err != nil {
		return nil, err
	}
	fields := map[string][]arrow.Field{}
	for i, r := range rows {
		f := db.planner().column(text(r[1]), oids[i], number[int32](text(r[3])), "").field
		f.Nullable = text(r[4]) != "t"
		fields[text(r[0])] = append(fields[text(r[0])], f)
	}
	schemas := map[string]*arrow.Schema{}
	for oid, f := range fields {
		schemas[oid] = arrow.NewSchema(f, nil)
	}
	return schemas, nil
}

// schemaMessage writes a schema as an encapsulated IPC message; nil is the empty schema.
func schemaMessage(s *arrow.Schema) ([]byte, error) {
	if s == nil {
		s = arrow.NewSchema(nil, nil)
	}
	p := ipc.GetSchemaPayload(s, memory.DefaultAllocator)
	defer p.Release()
	var buf bytes.Buffer
	_, err := p.WritePayload(&buf)
	return buf.Bytes(), err
}
