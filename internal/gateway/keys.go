package gateway

import (
	"cmp"
	"slices"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"

	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// ruleNoAction is Flight SQL's number of the rule that ADBC's metadata can't tell from
// others: what happens to a referencing row.
const ruleNoAction = 3

// primaryKeyRow is a row of schema_ref.PrimaryKeys.
type primaryKeyRow struct {
	Catalog  *string `json:"catalog_name"`
	Schema   *string `json:"db_schema_name"`
	Table    string  `json:"table_name"`
	Column   string  `json:"column_name"`
	Sequence int32   `json:"key_sequence"`
	Key      *string `json:"key_name"`
}

func primaryKeyRows(objects []object, table memberapi.TableRef) (array.RecordReader, error) {
	var rows []primaryKeyRow
	for _, o := range objects {
		if !o.is(table) {
			continue
		}
		for _, c := range o.table.Constraints {
			if c.Type != "PRIMARY KEY" {
				continue
			}
			for i, column := range c.Columns {
				rows = append(rows, primaryKeyRow{o.catalog, o.schema, o.table.Name, column, int32(i + 1), c.Name})
			}
		}
	}
	return encodeRows(schema_ref.PrimaryKeys, rows)
}

// foreignKeyRow is a row of schema_ref.ImportedExportedKeysAndCrossReference.
type foreignKeyRow struct {
	PKCatalog  *string `json:"pk_catalog_name"`
	PKSchema   *string `json:"pk_db_schema_name"`
	PKTable    string  `json:"pk_table_name"`
	PKColumn   string  `json:"pk_column_name"`
	FKCatalog  *string `json:"fk_catalog_name"`
	FKSchema   *string `json:"fk_db_schema_name"`
	FKTable    string  `json:"fk_table_name"`
	FKColumn   string  `json:"fk_column_name"`
	Sequence   int32   `json:"key_sequence"`
	FKKey      *string `json:"fk_key_name"`
	PKKey      *string `json:"pk_key_name"`
	UpdateRule uint8   `json:"update_rule"`
	DeleteRule uint8   `json:"delete_rule"`
}

func foreignKeyRows(objects []object, req memberapi.MetadataRequest) (array.RecordReader, error) {
	var rows []foreignKeyRow
	for _, o := range objects {
		for _, c := range o.table.Constraints {
			if c.Type == "FOREIGN KEY" {
				rows = append(rows, foreignKey(o, c)...)
			}
		}
	}
	rows = slices.DeleteFunc(rows, func(r foreignKeyRow) bool { return !r.wanted(req) })
	byReferenced := req.Kind == memberapi.MetaImportedKeys
	slices.SortStableFunc(rows, func(a, b foreignKeyRow) int { return a.compare(b, byReferenced) })
	return encodeRows(schema_ref.ImportedExportedKeysAndCrossReference, rows)
}

// foreignKey lists the columns of one foreign key of table o.
func foreignKey(o object, c objectConstraint) []foreignKeyRow {
	n := min(len(c.Columns), len(c.Usage))
	rows := make([]foreignKeyRow, n)
	for i := range n {
		to := c.Usage[i]
		rows[i] = foreignKeyRow{
			PKCatalog: to.Catalog, PKSchema: to.Schema, PKTable: to.Table, PKColumn: to.Column,
			FKCatalog: o.catalog, FKSchema: o.schema, FKTable: o.table.Name, FKColumn: c.Columns[i],
			Sequence: int32(i + 1), FKKey: c.Name, UpdateRule: ruleNoAction, DeleteRule: ruleNoAction,
		}
	}
	return rows
}

// wanted reports whether a request selects the row.
func (r foreignKeyRow) wanted(req memberapi.MetadataRequest) bool {
	referenced := object{catalog: r.PKCatalog, schema: r.PKSchema, table: objectTable{Name: r.PKTable}}
	referencing := object{catalog: r.FKCatalog, schema: r.FKSchema, table: objectTable{Name: r.FKTable}}
	switch req.Kind {
	case memberapi.MetaExportedKeys:
		return referenced.is(req.Table)
	case memberapi.MetaImportedKeys:
		return referencing.is(req.Table)
	}
	return referenced.is(req.Table) && referencing.is(req.Other)
}

// compare orders rows by the other table, the key and the place in it.
func (r foreignKeyRow) compare(o foreignKeyRow, byReferenced bool) int {
	name := func(k foreignKeyRow) []string {
		if byReferenced {
			return []string{text(k.PKCatalog), text(k.PKSchema), k.PKTable, text(k.FKKey)}
		}
		return []string{text(k.FKCatalog), text(k.FKSchema), k.FKTable, text(k.FKKey)}
	}
	return cmp.Or(slices.Compare(name(r), name(o)), cmp.Compare(r.Sequence, o.Sequence))
}
