package postgres

import (
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// newRecord builds a small batch out of rows of Go values: nil, string, []byte, bool,
// intN, and []any for the elements of a list or the fields of a struct.
func newRecord(schema *arrow.Schema, rows [][]any) (arrow.RecordBatch, error) {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for _, row := range rows {
		for i, v := range row {
			if err := appendAny(b.Field(i), v); err != nil {
				return nil, fmt.Errorf("%s: %w", schema.Field(i).Name, err)
			}
		}
	}
	return b.NewRecordBatch(), nil
}

func newRecordReader(schema *arrow.Schema, rows [][]any) (array.RecordReader, error) {
	rec, err := newRecord(schema, rows)
	if err != nil {
		return nil, err
	}
	defer rec.Release()
	return array.NewRecordReader(schema, []arrow.RecordBatch{rec})
}

func appendAny(b array.Builder, v any) error {
	switch v := v.(type) {
	case nil:
		b.AppendNull()
		return nil
	case *string:
		if v == nil {
			b.AppendNull()
			return nil
		}
		return appendAny(b, *v)
	}
	ok := false
	switch b := b.(type) {
	case *array.StringBuilder:
		ok = appendTo(b.Append, v)
	case *array.BinaryBuilder:
		ok = appendTo(b.Append, v)
	case *array.BooleanBuilder:
		ok = appendTo(b.Append, v)
	case *array.Int16Builder:
		ok = appendTo(b.Append, v)
	case *array.Int32Builder:
		ok = appendTo(b.Append, v)
	case *array.Uint8Builder:
		ok = appendTo(b.Append, v)
	case *array.Uint32Builder:
		ok = appendTo(b.Append, v)
	case *array.ListBuilder:
		return appendList(b, v)
	case *array.StructBuilder:
		return appendStruct(b, v)
	}
	if !ok {
		return fmt.Errorf("a %T does not go into %s", v, b.Type())
	}
	return nil
}

func appendTo[T any](add func(T), v any) bool {
	t, ok := v.(T)
	if ok {
		add(t)
	}
	return ok
}

func appendList(b *array.ListBuilder, v any) error {
	elems, ok := v.([]any)
	if !ok {
		return fmt.Errorf("a %T is no list", v)
	}
	b.Append(true)
	for _, e := range elems {
		if err := appendAny(b.ValueBuilder(), e); err != nil {
			return err
		}
	}
	return nil
}

func appendStruct(b *array.StructBuilder, v any) error {
	fields, ok := v.([]any)
	if !ok || len(fields) != b.NumField() {
		return fmt.Errorf("a %T is no struct of %d fields", v, b.NumField())
	}
	b.Append(true)
	for i, f := range fields {
		if err := appendAny(b.FieldBuilder(i), f); err != nil {
			return err
		}
	}
	return nil
}
