package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// GetTableTypes lists the kinds of table.
func (c *connection) GetTableTypes(context.Context) (array.RecordReader, error) {
	var rows [][]any
	for _, t := range tableTypes {
		rows = append(rows, []any{t})
	}
	return newRecordReader(adbc.TableTypesSchema, rows)
}

// GetInfo tells about server and connector. Codes that it does not know are left out.
func (c *connection) GetInfo(ctx context.Context, codes []adbc.InfoCode) (array.RecordReader, error) {
	version := ""
	err := c.db.withConn(ctx, nobody, func(_ context.Context, conn *conn) error {
		version = conn.pg.ParameterStatus("server_version")
		return nil
	})
	if err != nil {
		return nil, err
	}
	facts := []struct {
		code  adbc.InfoCode
		value any
	}{
		{adbc.InfoVendorName, "PostgreSQL"},
		{adbc.InfoVendorVersion, version},
		{adbc.InfoVendorSql, true},
		{adbc.InfoVendorSubstrait, false},
		{adbc.InfoDriverName, "Sluice connector for PostgreSQL"},
		{adbc.InfoDriverVersion, "1"},
		{adbc.InfoDriverArrowVersion, arrow.PkgVersion},
		{adbc.InfoDriverADBCVersion, adbc.AdbcVersion1_1_0},
	}
	b := array.NewRecordBuilder(memory.DefaultAllocator, adbc.GetInfoSchema)
	defer b.Release()
	for _, f := range facts {
		if !wanted(codes, f.code) {
			continue
		}
		b.Field(0).(*array.Uint32Builder).Append(uint32(f.code))
		if err := appendInfo(b.Field(1).(*array.DenseUnionBuilder), f.value); err != nil {
			return nil, err
		}
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	return array.NewRecordReader(adbc.GetInfoSchema, []arrow.RecordBatch{rec})
}

func wanted(codes []adbc.InfoCode, code adbc.InfoCode) bool {
	if slices.Contains(codes, code) {
		return true
	}
	return len(codes) == 0
}

func appendInfo(u *array.DenseUnionBuilder, value any) error {
	switch v := value.(type) {
	case string:
		u.Append(adbc.InfoValueStringType)
		u.Child(0).(*array.StringBuilder).Append(v)
	case bool:
		u.Append(adbc.InfoValueBooleanType)
		u.Child(1).(*array.BooleanBuilder).Append(v)
	case int64:
		u.Append(adbc.InfoValueInt64Type)
		u.Child(2).(*array.Int64Builder).Append(v)
	default:
		return fmt.Errorf("no member of the union for a %T", value)
	}
	return nil
}
