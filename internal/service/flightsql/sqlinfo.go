package flightsql

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql"
	"github.com/apache/arrow-go/v18/arrow/flight/flightsql/schema_ref"
	pb "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

func sqlInfoSchema() *arrow.Schema { return schema_ref.SqlInfo }

// sqlInfo is what the service tells about itself. What depends on a data source's
// dialect holds for PostgreSQL, the only type of source that there is.
func sqlInfo(version string) map[flightsql.SqlInfo]any {
	return map[flightsql.SqlInfo]any{
		flightsql.SqlInfoFlightSqlServerName:                        "Sluice",
		flightsql.SqlInfoFlightSqlServerVersion:                     version,
		flightsql.SqlInfoFlightSqlServerArrowVersion:                arrow.PkgVersion,
		flightsql.SqlInfoFlightSqlServerReadOnly:                    false, // each data source says for itself
		flightsql.SqlInfoFlightSqlServerSql:                         true,
		flightsql.SqlInfoFlightSqlServerSubstrait:                   false,
		flightsql.SqlInfoFlightSqlServerTransaction:                 int32(pb.SqlSupportedTransaction_SQL_SUPPORTED_TRANSACTION_NONE),
		flightsql.SqlInfoFlightSqlServerCancel:                      true,
		flightsql.SqlInfoFlightSqlServerBulkIngestion:               false,
		flightsql.SqlInfoFlightSqlServerIngestTransactionsSupported: false,
		flightsql.SqlInfoFlightSqlServerStatementTimeout:            int32(0),
		flightsql.SqlInfoFlightSqlServerTransactionTimeout:          int32(0),

		flightsql.SqlInfoDDLCatalog:                             false,
		flightsql.SqlInfoDDLSchema:                              true,
		flightsql.SqlInfoDDLTable:                               true,
		flightsql.SqlInfoIdentifierCase:                         int64(pb.SqlSupportedCaseSensitivity_SQL_CASE_SENSITIVITY_LOWERCASE),
		flightsql.SqlInfoIdentifierQuoteChar:                    `"`,
		flightsql.SqlInfoQuotedIdentifierCase:                   int64(pb.SqlSupportedCaseSensitivity_SQL_CASE_SENSITIVITY_CASE_INSENSITIVE),
		flightsql.SqlInfoAllTablesAreASelectable:                false,
		flightsql.SqlInfoNullOrdering:                           int64(pb.SqlNullOrdering_SQL_NULLS_SORTED_HIGH),
		flightsql.SqlInfoSearchStringEscape:                     `\`,
		flightsql.SqlInfoExtraNameChars:                         "$",
		flightsql.SqlInfoSupportsColumnAliasing:                 true,
		flightsql.SqlInfoNullPlusNullIsNull:                     true,
		flightsql.SqlInfoSupportsTableCorrelationNames:          true,
		flightsql.SqlInfoSupportsDifferentTableCorrelationNames: false,
		flightsql.SqlInfoSupportsExpressionsInOrderBy:           true,
		flightsql.SqlInfoSupportsOrderByUnrelated:               true,
		flightsql.SqlInfoSupportsLikeEscapeClause:               true,
		flightsql.SqlInfoSupportsNonNullableColumns:             true,
	}
}

// The children of the union that values come in.
const (
	childString = iota
	childBool
	childInt64
	childInt32
)

// sqlInfoStream encodes the wanted pieces, all if none is named, in ascending order.
// What the service does not know is left out.
func sqlInfoStream(version string, wanted []uint32) ([]byte, error) {
	known := sqlInfo(version)
	if len(wanted) == 0 {
		for id := range known {
			wanted = append(wanted, uint32(id))
		}
	}
	wanted = slices.Clone(wanted)
	slices.Sort(wanted)

	b := array.NewRecordBuilder(memory.DefaultAllocator, sqlInfoSchema())
	defer b.Release()
	for _, id := range slices.Compact(wanted) {
		if v, ok := known[flightsql.SqlInfo(id)]; ok {
			b.Field(0).(*array.Uint32Builder).Append(id)
			appendInfo(b.Field(1).(*array.DenseUnionBuilder), v)
		}
	}
	batch := b.NewRecordBatch()
	defer batch.Release()
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(sqlInfoSchema()))
	if err := w.Write(batch); err != nil {
		return nil, fmt.Errorf("encode SqlInfo: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("encode SqlInfo: %w", err)
	}
	return buf.Bytes(), nil
}

func appendInfo(b *array.DenseUnionBuilder, v any) {
	switch v := v.(type) {
	case string:
		b.Append(childString)
		b.Child(childString).(*array.StringBuilder).Append(v)
	case bool:
		b.Append(childBool)
		b.Child(childBool).(*array.BooleanBuilder).Append(v)
	case int64:
		b.Append(childInt64)
		b.Child(childInt64).(*array.Int64Builder).Append(v)
	case int32:
		b.Append(childInt32)
		b.Child(childInt32).(*array.Int32Builder).Append(v)
	}
}
