package postgres

import (
	"context"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
)

// Type codes of XDBC, which Flight SQL shares with ODBC and JDBC.
const (
	xdbcChar      = 1
	xdbcNumeric   = 2
	xdbcInteger   = 4
	xdbcSmallint  = 5
	xdbcReal      = 7
	xdbcDouble    = 8
	xdbcDatetime  = 9
	xdbcVarchar   = 12
	xdbcDate      = 91
	xdbcTime      = 92
	xdbcTimestamp = 93
	xdbcVarbinary = -3
	xdbcBigint    = -5
	xdbcBit       = -7
)

// xdbcType describes a type to clients that think in ODBC or JDBC.
type xdbcType struct {
	name          string
	code, size    int32
	quoted        bool
	params        []any
	caseSensitive bool
	radix         int32 // 0: not a number
	maxScale      int32
	sqlCode, sub  int32 // of date and time types: the verbose code and its part
}

// xdbcTypes are ordered by code, then by how well they match it, as Flight SQL wants.
var xdbcTypes = []xdbcType{
	{name: "bool", code: xdbcBit, size: 1},
	{name: "int8", code: xdbcBigint, size: 19, radix: 10},
	{name: "bytea", code: xdbcVarbinary, size: 1 << 30, quoted: true},
	{name: "bpchar", code: xdbcChar, size: 10485760, quoted: true, params: []any{"length"}, caseSensitive: true},
	{name: "numeric", code: xdbcNumeric, size: 1000, radix: 10, maxScale: 1000, params: []any{"precision", "scale"}},
	{name: "int4", code: xdbcInteger, size: 10, radix: 10},
	{name: "oid", code: xdbcInteger, size: 10, radix: 10},
	{name: "int2", code: xdbcSmallint, size: 5, radix: 10},
	{name: "float4", code: xdbcReal, size: 24, radix: 2},
	{name: "float8", code: xdbcDouble, size: 53, radix: 2},
	{name: "varchar", code: xdbcVarchar, size: 10485760, quoted: true, params: []any{"length"}, caseSensitive: true},
	{name: "text", code: xdbcVarchar, size: 1 << 30, quoted: true, caseSensitive: true},
	{name: "uuid", code: xdbcVarchar, size: 36, quoted: true},
	{name: "json", code: xdbcVarchar, size: 1 << 30, quoted: true, caseSensitive: true},
	{name: "jsonb", code: xdbcVarchar, size: 1 << 30, quoted: true, caseSensitive: true},
	{name: "interval", code: xdbcVarchar, size: 49, quoted: true},
	{name: "date", code: xdbcDate, size: 13, quoted: true, sqlCode: xdbcDatetime, sub: 1},
	{name: "time", code: xdbcTime, size: 15, quoted: true, sqlCode: xdbcDatetime, sub: 2},
	{name: "timetz", code: xdbcTime, size: 21, quoted: true, sqlCode: xdbcDatetime, sub: 2},
	{name: "timestamp", code: xdbcTimestamp, size: 29, quoted: true, sqlCode: xdbcDatetime, sub: 3},
	{name: "timestamptz", code: xdbcTimestamp, size: 35, quoted: true, sqlCode: xdbcDatetime, sub: 3},
}

// xdbcOf finds a type by PostgreSQL's name; unknown ones are character strings.
func xdbcOf(name string) xdbcType {
	for _, t := range xdbcTypes {
		if t.name == name {
			return t
		}
	}
	return xdbcType{name: name, code: xdbcVarchar, size: 1 << 30, quoted: true, caseSensitive: true}
}

// TypeInfo implements connector.TypeInfoReader.
func (db *database) TypeInfo(_ context.Context, dataType *int32) (arrow.RecordBatch, error) {
	var rows [][]any
	for _, t := range xdbcTypes {
		if dataType == nil || *dataType == t.code {
			rows = append(rows, t.row())
		}
	}
	return newRecord(schema_ref.XdbcTypeInfo, rows)
}

func (t xdbcType) row() []any {
	var quote, params, unsigned, auto, minScale, maxScale, sub, radix any
	sqlCode := t.code
	if t.quoted {
		quote = "'"
	}
	if t.params != nil {
		params = t.params
	}
	if t.radix != 0 {
		unsigned, auto, radix = t.name == "oid", false, t.radix
		if t.radix == 10 {
			minScale, maxScale = int32(0), t.maxScale
		}
	}
	if t.sqlCode != 0 {
		sqlCode, sub = t.sqlCode, t.sub
	}
	const nullable, searchable = int32(1), int32(3)
	return []any{
		t.name, t.code, t.size, quote, quote, params, nullable, t.caseSensitive, searchable, unsigned,
		false, auto, t.name, minScale, maxScale, sqlCode, sub, radix, nil,
	}
}
