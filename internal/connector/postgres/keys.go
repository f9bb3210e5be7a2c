package postgres

import (
	"context"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"

	"github.com/sluice-gateway/sluice/internal/memberapi"
)

const primaryKeysQuery = `
select pg_catalog.current_database(), n.nspname, c.relname, a.attname, k.n, o.conname
from pg_catalog.pg_constraint o
join pg_catalog.pg_class c on c.oid = o.conrelid
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
cross join lateral unnest(o.conkey) with ordinality k (attnum, n)
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
where o.contype = 'p' and ($1::text is null or pg_catalog.current_database() = $1)
	and ($2::text is null or n.nspname = $2) and c.relname = $3
order by n.nspname, c.relname, k.n`

// PrimaryKeys implements connector.KeyReader.
func (db *database) PrimaryKeys(ctx context.Context, table memberapi.TableRef) (arrow.RecordBatch, error) {
	return db.list(ctx, schema_ref.PrimaryKeys, primaryKeysQuery, func(r []*string) []any {
		return []any{r[0], r[1], r[2], r[3], number[int32](text(r[4])), r[5]}
	}, table.Catalog, table.Schema, &table.Table)
}

// foreignKeysQuery names the key that is referred to by its index. The rules are
// numbered as Flight SQL and JDBC do.
const foreignKeysQuery = `
select pg_catalog.current_database(), pn.nspname, pc.relname, pa.attname, fn.nspname, fc.relname, fa.attname, k.n, o.conname,
	(select p.conname from pg_catalog.pg_constraint p
		where p.conrelid = o.confrelid and p.conindid = o.conindid and p.contype in ('p', 'u') limit 1),
	pg_catalog.strpos('crnad', o.confupdtype::text) - 1, pg_catalog.strpos('crnad', o.confdeltype::text) - 1
from pg_catalog.pg_constraint o
join pg_catalog.pg_class fc on fc.oid = o.conrelid
join pg_catalog.pg_namespace fn on fn.oid = fc.relnamespace
join pg_catalog.pg_class pc on pc.oid = o.confrelid
join pg_catalog.pg_namespace pn on pn.oid = pc.relnamespace
cross join lateral unnest(o.conkey, o.confkey) with ordinality k (fk, pk, n)
join pg_catalog.pg_attribute fa on fa.attrelid = fc.oid and fa.attnum = k.fk
join pg_catalog.pg_attribute pa on pa.attrelid = pc.oid and pa.attnum = k.pk
where o.contype = 'f'
	and ($1::text is null or pg_catalog.current_database() = $1) and ($2::text is null or pn.nspname = $2) and ($3::text is null or pc.relname = $3)
	and ($4::text is null or pg_catalog.current_database() = $4) and ($5::text is null or fn.nspname = $5) and ($6::text is null or fc.relname = $6)
order by pn.nspname, pc.relname, fn.nspname, fc.relname, o.conname, k.n`

// ForeignKeys implements connector.KeyReader.
func (db *database) ForeignKeys(ctx context.Context, pk, fk *memberapi.TableRef) (arrow.RecordBatch, error) {
	args := append(refArgs(pk), refArgs(fk)...)
	return db.list(ctx, schema_ref.ImportedExportedKeysAndCrossReference, foreignKeysQuery, func(r []*string) []any {
		return []any{
			r[0], r[1], r[2], r[3], r[0], r[4], r[5], r[6], number[int32](text(r[7])), r[8], r[9],
			uint8(number[int32](text(r[10]))), uint8(number[int32](text(r[11]))),
		}
	}, args...)
}

func refArgs(ref *memberapi.TableRef) []*string {
	if ref == nil {
		return []*string{nil, nil, nil}
	}
	return []*string{ref.Catalog, ref.Schema, &ref.Table}
}

// list runs a query and turns its rows into a batch.
func (db *database) list(ctx context.Context, schema *arrow.Schema, sql string, row func([]*string) []any, args ...*string) (arrow.RecordBatch, error) {
	var rows [][]any
	err := db.withConn(ctx, nobody, func(ctx context.Context, c *conn) error {
		var given []any
		for _, a := range args {
			given = append(given, a)
		}
		found, err := c.query(ctx, sql, given...)
		for _, r := range found {
			rows = append(rows, row(r))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return newRecord(schema, rows)
}
