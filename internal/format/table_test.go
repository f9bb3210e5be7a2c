package format

import (
	"bytes"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/google/go-cmp/cmp"
)

func people(t *testing.T, names ...string) []byte {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "id", Type: arrow.PrimitiveTypes.Int32},
		{Name: "name", Type: arrow.BinaryTypes.String, Nullable: true},
		{Name: "paid", Type: &arrow.Decimal128Type{Precision: 9, Scale: 2}, Nullable: true},
	}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	for i, name := range names {
		b.Field(0).(*array.Int32Builder).Append(int32(i * 50))
		b.Field(1).(*array.StringBuilder).Append(name)
		b.Field(2).(*array.Decimal128Builder).Append(dec128("12.50", 9, 2))
	}
	b.Field(0).(*array.Int32Builder).Append(7)
	b.Field(1).AppendNull()
	b.Field(2).AppendNull()
	return streamOf(t, schema, b.NewRecordBatch())
}

func render(t *testing.T, stream []byte, opts TableOptions) string {
	t.Helper()
	var out bytes.Buffer
	if _, err := Table(&out, bytes.NewReader(stream), opts); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestTable(t *testing.T) {
	got := render(t, people(t, "Ada", "日本語", "e\u0301te\u0301", "bad\x1b[31m\nname"), TableOptions{})
	want := strings.Join([]string{
		" id  name               paid",
		"---  ----------------  -----",
		"  0  Ada               12.50",
		" 50  日本語            12.50",
		"100  e\u0301te\u0301               12.50",
		`150  bad\x1b[31m\nname  12.50`,
		"  7  NULL               NULL",
		"",
	}, "\n")
	want = strings.Replace(want, "name               paid", "name                paid", 1)
	want = strings.Replace(want, "----------------  -----", "-----------------  -----", 1)
	for _, cell := range []string{"Ada  ", "日本語  ", "e\u0301te\u0301  ", "NULL  "} {
		want = strings.Replace(want, cell, cell+" ", 1)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTableFitsTheWidth(t *testing.T) {
	stream := people(t, strings.Repeat("x", 100), strings.Repeat("宽", 50), "short")
	for _, width := range []int{1, 5, 10, 20, 40, 80} {
		for line := range strings.SplitSeq(render(t, stream, TableOptions{Width: width}), "\n") {
			if w := displayWidth(line); w > width {
				t.Errorf("width %d: a line of %d: %q", width, w, line)
			}
		}
	}
	if got := render(t, stream, TableOptions{Width: 30}); !strings.Contains(got, "x…") || !strings.Contains(got, "宽…") || !strings.Contains(got, "12.50") {
		t.Errorf("not cut with …, or the last column is gone:\n%s", got)
	}
	if got := render(t, stream, TableOptions{MaxColWidth: 8}); !strings.Contains(got, "xxxxxxx…  ") {
		t.Errorf("MaxColWidth is not kept:\n%s", got)
	}
}

func TestTableWithoutRows(t *testing.T) {
	if got := render(t, numbers(t, 0, 0), TableOptions{}); got != "n  s\n-  -\n" {
		t.Errorf("%q", got)
	}
	none := arrow.NewSchema(nil, nil)
	if got := render(t, streamOf(t, none), TableOptions{}); got != "" {
		t.Errorf("no columns: %q", got)
	}
}

func TestTableStreamsAndBreaks(t *testing.T) {
	stream := numbers(t, 3, 2000)
	if got := render(t, stream, TableOptions{}); strings.Count(got, "\n") != 6002 || !strings.Contains(got, "\n5999  row 5999\n") {
		t.Errorf("%d lines", strings.Count(got, "\n"))
	}
	var out bytes.Buffer
	if _, err := Table(&out, bytes.NewReader(stream[:len(stream)-8]), TableOptions{}); err == nil {
		t.Error("a broken stream gave no error")
	}
}
