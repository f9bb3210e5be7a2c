package frontendtest

import (
	"bytes"
	"strconv"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// eos is the length of the end-of-stream marker.
const eos = 8

// NumbersSchema is the schema of Numbers.
func NumbersSchema() *arrow.Schema {
	return arrow.NewSchema([]arrow.Field{
		{Name: "n", Type: arrow.PrimitiveTypes.Int64},
		{Name: "s", Type: arrow.BinaryTypes.String, Nullable: true},
	}, nil)
}

// Stream encodes batches.
func Stream(schema *arrow.Schema, batches ...arrow.RecordBatch) []byte {
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(schema))
	for _, b := range batches {
		if err := w.Write(b); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

// Numbers is a stream of batches of rows 0, 1, 2, … with a text beside each.
func Numbers(batches, rows int) []byte {
	schema := NumbersSchema()
	recs := make([]arrow.RecordBatch, batches)
	for i := range recs {
		b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
		for j := range rows {
			b.Field(0).(*array.Int64Builder).Append(int64(i*rows + j))
			b.Field(1).(*array.StringBuilder).Append("row " + strconv.Itoa(i*rows+j))
		}
		recs[i] = b.NewRecordBatch()
		b.Release()
	}
	return Stream(schema, recs...)
}

// Long is an Answer of many equal batches that takes little memory.
func Long(batches, rows int) Answer {
	none, one := Numbers(0, 0), Numbers(1, rows)
	return Answer{
		Head: none[:len(none)-eos], Batch: one[len(none)-eos : len(one)-eos],
		Repeat: batches, Tail: one[len(one)-eos:],
	}
}

// BreaksOff is an Answer that fails with err after some batches.
func BreaksOff(batches, rows int, err error) Answer {
	a := Long(batches, rows)
	a.Tail, a.Then = nil, err
	return a
}
