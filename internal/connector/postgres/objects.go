package postgres

import (
	"context"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow/array"
)

// GetObjects lists the one catalog that the connection reaches, down to depth.
func (c *connection) GetObjects(ctx context.Context, depth adbc.ObjectDepth, catalog, dbSchema, tableName, columnName *string, tableType []string) (array.RecordReader, error) {
	o := &objects{filter: tableFilter{catalog, dbSchema, tableName, tableType}, column: columnName, depth: depth}
	if err := c.db.withConn(ctx, nobody, o.read); err != nil {
		return nil, err
	}
	return newRecordReader(adbc.GetObjectsSchema, o.tree())
}

// objects is a listing in the making: rows as they were read, grouped by what they belong to.
type objects struct {
	filter tableFilter
	column *string
	depth  adbc.ObjectDepth

	catalogs    []*string
	schemas     []*string
	tables      map[string][][]*string // by schema: name, kind, identifier
	columns     map[string][]any       // by table identifier
	constraints map[string][]any
}

// hasCatalog selects the database by pattern $1; the other parameters are named so that
// every query takes the same.
const catalogQuery = `select pg_catalog.current_database() where $1::text is null or pg_catalog.current_database() like $1`

const schemasQuery = `
select n.nspname from pg_catalog.pg_namespace n
where ($1::text is null or n.nspname like $1) and n.nspname !~ '^pg_(toast|temp)'
order by n.nspname`

func (o *objects) read(ctx context.Context, c *conn) error {
	rows, err := c.query(ctx, catalogQuery, o.filter.catalog)
	if err != nil || len(rows) == 0 {
		return err
	}
	o.catalogs = []*string{rows[0][0]}
	if o.depth == adbc.ObjectDepthCatalogs {
		return nil
	}
	if rows, err = c.query(ctx, schemasQuery, o.filter.schema); err != nil {
		return err
	}
	o.schemas = nil
	for _, r := range rows {
		o.schemas = append(o.schemas, r[0])
	}
	if o.depth == adbc.ObjectDepthDBSchemas {
		return nil
	}
	if err := o.readTables(ctx, c); err != nil || o.depth == adbc.ObjectDepthTables {
		return err
	}
	if err := o.readColumns(ctx, c); err != nil {
		return err
	}
	return o.readConstraints(ctx, c)
}

func (o *objects) readTables(ctx context.Context, c *conn) error {
	rows, err := c.query(ctx, "select t.nspname, t.relname, t.kind, t.oid"+tablesFrom+" order by t.nspname, t.relname", o.filter.args()...)
	o.tables = map[string][][]*string{}
	for _, r := range rows {
		o.tables[text(r[0])] = append(o.tables[text(r[0])], r[1:])
	}
	return err
}

const objectColumnsQuery = `
select t.oid, a.attname, a.attnum, pg_catalog.col_description(t.oid, a.attnum), y.typname,
	information_schema._pg_char_max_length(y.oid, a.atttypmod), information_schema._pg_numeric_precision(y.oid, a.atttypmod),
	information_schema._pg_numeric_scale(y.oid, a.atttypmod), a.attnotnull, pg_catalog.pg_get_expr(d.adbin, d.adrelid),
	a.attidentity <> '' or coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '') like 'nextval(%', a.attgenerated <> ''` + tablesFrom1 + `
join pg_catalog.pg_type y on y.oid = a.atttypid
left join pg_catalog.pg_attrdef d on d.adrelid = t.oid and d.adnum = a.attnum
where $5::text is null or a.attname like $5
order by t.oid, a.attnum`

func (o *objects) readColumns(ctx context.Context, c *conn) error {
	rows, err := c.query(ctx, objectColumnsQuery, append(o.filter.args(), o.column)...)
	o.columns = map[string][]any{}
	for _, r := range rows {
		o.columns[text(r[0])] = append(o.columns[text(r[0])], objectColumn(r))
	}
	return err
}

// objectColumn is one row of objectColumnsQuery as ADBC's COLUMN_SCHEMA.
func objectColumn(r []*string) []any {
	t := xdbcOf(text(r[4]))
	var size, digits, radix, octets, sub any
	if t.radix != 0 {
		radix = int16(t.radix)
	}
	switch {
	case r[5] != nil:
		size = number[int32](*r[5])
		octets = size
	case r[6] != nil:
		size = number[int32](*r[6])
	}
	if r[7] != nil {
		digits = int16(number[int32](*r[7]))
	}
	nullable, isNullable := int16(1), "YES"
	if text(r[8]) == "t" {
		nullable, isNullable = 0, "NO"
	}
	sqlType := t.code
	if t.sqlCode != 0 {
		sqlType, sub = t.sqlCode, int16(t.sub)
	}
	return []any{
		r[1], number[int32](text(r[2])), r[3], int16(t.code), r[4], size, digits, radix, nullable, r[9],
		int16(sqlType), sub, octets, isNullable, nil, nil, nil, text(r[10]) == "t", text(r[11]) == "t",
	}
}

const objectConstraintsQuery = `
select t.oid, o.conname, o.contype, pg_catalog.current_database(), pn.nspname, pc.relname,
	a.attname, pa.attname
from (select t.oid` + tablesFrom + `) t
join pg_catalog.pg_constraint o on o.conrelid = t.oid and o.contype in ('c', 'f', 'p', 'u')
left join pg_catalog.pg_class pc on pc.oid = o.confrelid
left join pg_catalog.pg_namespace pn on pn.oid = pc.relnamespace
left join lateral unnest(o.conkey, o.confkey) with ordinality k (fk, pk, n) on true
left join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attnum = k.fk
left join pg_catalog.pg_attribute pa on pa.attrelid = pc.oid and pa.attnum = k.pk
order by t.oid, o.conname, k.n`

var constraintKinds = map[string]string{"c": "CHECK", "f": "FOREIGN KEY", "p": "PRIMARY KEY", "u": "UNIQUE"}

// readConstraints gathers the columns of each constraint, which come in rows of their own.
func (o *objects) readConstraints(ctx context.Context, c *conn) error {
	rows, err := c.query(ctx, objectConstraintsQuery, o.filter.args()...)
	o.constraints = map[string][]any{}
	for i := 0; i < len(rows); {
		first, columns, usage := rows[i], []any{}, any(nil)
		for ; i < len(rows) && text(rows[i][0]) == text(first[0]) && text(rows[i][1]) == text(first[1]); i++ {
			r := rows[i]
			if r[6] != nil {
				columns = append(columns, r[6])
			}
			if r[7] != nil {
				list, _ := usage.([]any)
				list = append(list, []any{r[3], r[4], r[5], r[7]})
				usage = list
			}
		}
		table := text(first[0])
		o.constraints[table] = append(o.constraints[table], []any{first[1], constraintKinds[text(first[2])], columns, usage})
	}
	return err
}

// tree nests what was read as ADBC's GET_OBJECTS_SCHEMA. Below the depth asked for, lists are null.
func (o *objects) tree() [][]any {
	var rows [][]any
	for _, name := range o.catalogs {
		var schemas any
		if o.depth != adbc.ObjectDepthCatalogs {
			schemas = o.schemaList()
		}
		rows = append(rows, []any{name, schemas})
	}
	return rows
}

func (o *objects) schemaList() []any {
	list := []any{}
	for _, name := range o.schemas {
		var tables any
		if o.depth != adbc.ObjectDepthDBSchemas {
			tables = o.tableList(text(name))
		}
		list = append(list, []any{name, tables})
	}
	return list
}

func (o *objects) tableList(schema string) []any {
	list := []any{}
	for _, t := range o.tables[schema] {
		var columns, constraints any
		if o.depth == adbc.ObjectDepthColumns {
			columns, constraints = orEmpty(o.columns[text(t[2])]), orEmpty(o.constraints[text(t[2])])
		}
		list = append(list, []any{t[0], t[1], columns, constraints})
	}
	return list
}

func orEmpty(list []any) []any {
	if list == nil {
		return []any{}
	}
	return list
}
