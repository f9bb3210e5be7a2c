package postgres

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

// pieces gives out what a server sent in pieces of random size.
type pieces struct {
	rest   []byte
	random *rand.Rand
	most   int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(len(p.rest), 1+p.random.IntN(p.most))])
	p.rest = p.rest[n:]
	return n, nil
}

// serverSays is many rows of three values, with other messages among them, and what
// they are as text.
func serverSays(random *rand.Rand, rows int) (sent []byte, said []string) {
	add := func(m pgproto3.BackendMessage, as string) {
		sent, _ = m.Encode(sent)
		said = append(said, as)
	}
	for i := range rows {
		values := make([][]byte, 3)
		for c := range values {
			size := random.IntN(60)
			switch random.IntN(3000) {
			case 0:
				size = 200_000 // larger than any buffer
			case 1, 2:
				size = 20_000
			}
			if random.IntN(5) > 0 {
				values[c] = []byte(strings.Repeat(string(rune('a'+random.IntN(26))), size))
			}
		}
		add(&pgproto3.DataRow{Values: values}, rowText(values))
		if random.IntN(200) == 0 {
			add(&pgproto3.NoticeResponse{Message: fmt.Sprint(i)}, fmt.Sprint("notice ", i))
		}
	}
	add(&pgproto3.CommandComplete{CommandTag: []byte("SELECT")}, "end")
	return sent, said
}

func rowText(values [][]byte) string {
	var b strings.Builder
	for _, v := range values {
		if v == nil {
			b.WriteString("null|")
		} else {
			fmt.Fprintf(&b, "%d %.1s|", len(v), v)
		}
	}
	return b.String()
}

// heard reads to the end, rows by the block where it can.
func heard(t *testing.T, w *wire, f *pgproto3.Frontend) (said []string, blocks int) {
	t.Helper()
	for {
		if b := w.rows(3, 1000, 1<<20); b.rows > 0 {
			blocks++
			for r := range b.rows {
				var values [][]byte
				for c := range 3 {
					values = append(values, cell(b.bytes, b.column(c, b.rows)[r]))
				}
				said = append(said, rowText(values))
			}
			continue
		}
		switch m := receive(t, f).(type) {
		case *pgproto3.DataRow:
			said = append(said, rowText(m.Values))
		case *pgproto3.NoticeResponse:
			said = append(said, "notice "+m.Message)
		case *pgproto3.CommandComplete:
			return append(said, "end"), blocks
		}
	}
}

func receive(t *testing.T, f *pgproto3.Frontend) pgproto3.BackendMessage {
	t.Helper()
	m, err := f.Receive()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// However the bytes come, the library and rows together give every message once, in order.
func TestWireLosesNothing(t *testing.T) {
	t.Parallel()
	for _, most := range []int{1, 7, 1000, 9000, 1 << 20} {
		random := rand.New(rand.NewPCG(uint64(most), 5))
		sent, want := serverSays(random, 30+min(most, 5000))
		w := &wire{buffers: &buffers{}}
		f := w.build(&pieces{sent, random, most}, io.Discard)
		got, blocks := heard(t, w, f)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("in pieces of %d: %s", most, diff)
		}
		if most > smallBuffer && blocks == 0 {
			t.Errorf("in pieces of %d: nothing came by the block", most)
		}
		if w.rest(); !w.isEmpty() || w.in != nil {
			t.Errorf("in pieces of %d: a buffer is held with nothing in it", most)
		}
	}
}

// A row that breaks the protocol is left to the library, which says so.
func TestWireLeavesBrokenRows(t *testing.T) {
	t.Parallel()
	good, _ := (&pgproto3.DataRow{Values: [][]byte{[]byte(strings.Repeat("x", 5000))}}).Encode(nil)
	for name, bad := range map[string][]byte{
		"another number of values": {'D', 0, 0, 0, 6, 0, 2},
		"a value past the end":     {'D', 0, 0, 0, 10, 0, 1, 0, 0, 0, 9},
		"a length of -2":           {'D', 0, 0, 0, 10, 0, 1, 0xff, 0xff, 0xff, 0xfe},
		"no room for a length":     {'D', 0, 0, 0, 8, 0, 1, 0, 0},
		"no count":                 {'D', 0, 0, 0, 4},
		"a length below its own":   {'D', 0, 0, 0, 1},
	} {
		sent := slices.Concat(good, good, good, good, bad, good, []byte{'Z', 0, 0, 0, 5, 'I'})
		w := &wire{buffers: &buffers{}}
		f := w.build(&pieces{sent, rand.New(rand.NewPCG(1, 1)), 1 << 20}, io.Discard)
		rows, failed := 0, false
		for range 10 {
			if b := w.rows(1, 1000, 1<<20); b.rows > 0 {
				rows += b.rows
				continue
			}
			if m, err := f.Receive(); err != nil {
				failed = true
				break
			} else if row, ok := m.(*pgproto3.DataRow); ok && len(row.Values) != 1 {
				failed = true // as run.decode notices
				break
			}
			rows++
		}
		if !failed || rows != 4 {
			t.Errorf("%s: %d rows, failed %t", name, rows, failed)
		}
	}
}

// blockOf lays values out as rows of one column lie in a connection's buffer.
func blockOf(values [][]byte) (bytes []byte, at []uint32) {
	for _, v := range values {
		bytes = append(bytes, 'D', 0, 0, 0, 0, 0, 1) // not looked at
		at = append(at, uint32(len(bytes)))
		if v == nil {
			bytes = binary.BigEndian.AppendUint32(bytes, 1<<32-1)
			continue
		}
		bytes = append(binary.BigEndian.AppendUint32(bytes, uint32(len(v))), v...)
	}
	return append(bytes, make([]byte, slack)...), at
}

// compareBlock appends values to a column one by one and to another by the block: the
// rows, or the error and its place, must be the same.
func compareBlock(t *testing.T, pl plan, values [][]byte) {
	t.Helper()
	one, block := pl.col(), pl.col()
	rows, want := 0, error(nil)
	for ; rows < len(values); rows++ {
		if want = one.append(values[rows]); want != nil {
			break
		}
	}
	bytes, at := blockOf(values)
	half := len(at) / 2
	n, got := block.appendBlock(bytes, at[:half])
	if got == nil {
		n, got = block.appendBlock(bytes, at[half:])
		n += half
	}
	if n != rows || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%s: by the block %d rows and %v, one by one %d and %v", pl.field.Type, n, got, rows, want)
	}
	if want != nil {
		return
	}
	a, b := one.finish(), block.finish()
	defer a.Release()
	defer b.Release()
	if a.Len() != b.Len() || a.NullN() != b.NullN() || printed(a) != printed(b) {
		t.Fatalf("%s: by the block\n%s\none by one\n%s", pl.field.Type, printed(b), printed(a))
	}
}

// everyPlan is a plan for each type that the package knows.
func everyPlan() (plans []plan) {
	p := planner{types: func(uint32) (typeInfo, bool) { return typeInfo{}, false }}
	for oid := range builtins {
		plans = append(plans, p.column("x", oid, -1, ""))
	}
	for oid := range builtinArrays {
		plans = append(plans, p.column("x", oid, -1, ""))
	}
	for _, mod := range []int32{4 + 10<<16 + 2, 4 + 38<<16 + 20, 4 + 70<<16 + 5, 4 + 5<<16 + 0x7fe, 4 + 18<<16, 4 + 19<<16 + 19} {
		plans = append(plans, p.column("x", oidNumeric, mod, ""), p.column("x", 1231, mod, ""))
	}
	return plans
}

// Values of every length and kind, nulls among them, come out the same by the block.
func TestBlocksAreAsOneByOne(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	for _, pl := range everyPlan() {
		for range 300 {
			values := make([][]byte, 1+random.IntN(40))
			sound := soundSizes[random.IntN(len(soundSizes))]
			for i := range values {
				values[i] = randomValue(random, sound)
			}
			compareBlock(t, pl, values)
		}
	}
}

var soundSizes = []int{1, 2, 4, 8, 16, 0, -1}

// randomValue is mostly of a size, -1 being a numeric.
func randomValue(random *rand.Rand, size int) []byte {
	switch random.IntN(20) {
	case 0:
		return nil
	case 1:
		if random.IntN(20) == 0 {
			size = random.IntN(40)
		}
	}
	if size < 0 {
		digits := make([]uint16, random.IntN(6))
		for i := range digits {
			digits[i] = []uint16{0, 1, 9999, 10, 100, 1000, uint16(random.IntN(10000)), uint16(random.IntN(100) * 100)}[random.IntN(8)]
		}
		v := wireNumeric(int16(random.IntN(6)-3), digits...)
		if random.IntN(3) == 0 {
			v[4] = []byte{0x40, 0x40, 0x40, 0xC0, 0xD0, 0x12}[random.IntN(6)]
		}
		return v
	}
	v := make([]byte, size)
	for i := range v {
		v[i] = byte(random.IntN(128))
		if random.IntN(200) == 0 {
			v[i] = []byte{0xff, 0xc3, 0x80, 0x7f}[random.IntN(4)]
		}
	}
	if size > 0 && random.IntN(100) == 0 {
		for i := range v {
			v[i] = 0xff
		}
		v[0] = []byte{0x7f, 0x80}[random.IntN(2)]
	}
	return v
}

// Characters that are split between two values make valid UTF-8 together, and not apart.
func TestSplitCharacterIsNoUTF8(t *testing.T) {
	t.Parallel()
	bytes, at := blockOf([][]byte{[]byte("grüße"), {0xc3}, {0xbc}})
	col := (planner{}).column("x", oidText, -1, "").col()
	if n, err := col.appendBlock(bytes, at); n != 1 || err == nil {
		t.Errorf("%d rows, %v", n, err)
	}
}

// Long results of every type read as PostgreSQL prints them, as short ones do.
func TestLongResultsMatchPostgres(t *testing.T) {
	t.Parallel()
	s := testpg.Shared(t)
	s.Exec(t, setup)
	db := openSource(t, s, with("options", "-c TimeZone=UTC"))
	for i, c := range typeCases {
		var values strings.Builder
		values.WriteString("(null)")
		for _, v := range c.values {
			if len(v) < 1000 {
				values.WriteString(fmt.Sprintf(",('%s')", strings.ReplaceAll(v, "'", "''")))
			}
		}
		s.Exec(t, fmt.Sprintf("create table long%d (n serial, v %s); grant select on long%d to app; insert into long%d (v) values %s", i, c.typ, i, i, values.String()))
		short := queryRows(t, db, fmt.Sprintf("select v, n from long%d order by n", i))
		const times = 400
		got := queryRows(t, db, fmt.Sprintf("select v, n from long%d, generate_series(1, %d) g order by g, n", i, times))
		want := slices.Repeat(short, times)
		if diff := cmp.Diff(short, got[:min(len(short), len(got))]); diff != "" || !slices.EqualFunc(want, got, slices.Equal) {
			t.Errorf("%s: %d rows, want %d\n%s", c.typ, len(got), len(want), diff)
		}
	}
}

// An idle connection holds no buffer, and what was read ahead counts as said.
func TestIdleConnectionHoldsNoBuffer(t *testing.T) {
	t.Parallel()
	db := openSource(t, testpg.Shared(t))
	for _, sql := range []string{"select 1", "select i, repeat('x', 100) from generate_series(1, 20000) i", "select no_such_column"} {
		_ = runAny(t, db, sql)
		c := db.pool.idle[0]
		if !c.ready() || !c.in.isEmpty() || c.in.in != nil {
			t.Errorf("after %q the connection is not at rest", sql)
		}
	}
	c := db.pool.idle[0]
	c.in.in, c.in.wp = &buffer{bytes: make([]byte, 10)}, 1
	c.idleSince = c.idleSince.Add(-2 * probeAfter)
	if c.ready() {
		t.Error("a connection with an unread byte is taken for sound")
	}
	c.in.in, c.in.wp = nil, 0
}
