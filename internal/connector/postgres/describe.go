package postgres

import (
	lru "container/list"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/jackc/pgx/v5/pgconn"
)

// maxDescriptions bounds the descriptions kept, and maxDescribedSQL the length of the
// statements of which they are.
const (
	maxDescriptions = 256
	maxDescribedSQL = 64 << 10
)

// description is what a statement takes and gives. It is immutable.
type description struct {
	stmt    *pgconn.StatementDescription
	params  []uint32
	columns []plan
	formats []int16
	schema  *arrow.Schema
	text    map[int]string // columns asked for as text, and why
	// traces and lingers are what the statement's text says of the session after it.
	traces, lingers bool
}

// same reports whether the server still describes the statement in this way.
func (d *description) same(now *pgconn.StatementDescription) bool {
	return slices.Equal(d.params, now.ParamOIDs) && slices.Equal(d.stmt.Fields, now.Fields)
}

// newDescription plans every column. Types must be known to p by now.
func newDescription(sql string, sd *pgconn.StatementDescription, p planner, text map[int]string) *description {
	d := &description{
		stmt:   &pgconn.StatementDescription{Fields: sd.Fields, ParamOIDs: sd.ParamOIDs},
		params: sd.ParamOIDs, text: text, traces: leavesTraces(sql), lingers: lingers(sql),
	}
	var fields []arrow.Field
	for i, f := range sd.Fields {
		pl := p.column(f.Name, f.DataTypeOID, f.TypeModifier, text[i])
		d.columns = append(d.columns, pl)
		d.formats = append(d.formats, pl.format)
		fields = append(fields, pl.field)
	}
	d.schema = arrow.NewSchema(fields, nil)
	return d
}

// withText is d with one more column as text.
func (d *description) withText(sql string, col int, why string, p planner) *description {
	text := map[int]string{col: why}
	maps.Copy(text, d.text)
	return newDescription(sql, d.stmt, p, text)
}

// descriptions keeps the latest used, by statement text.
type descriptions struct {
	mu    sync.Mutex
	order lru.List // of *described, the latest first
	bySQL map[string]*lru.Element
}

type described struct {
	sql  string
	desc *description
}

func (d *descriptions) get(sql string) *description {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.bySQL[sql]
	if !ok {
		return nil
	}
	d.order.MoveToFront(e)
	return e.Value.(*described).desc
}

func (d *descriptions) put(sql string, desc *description) {
	if len(sql) > maxDescribedSQL {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.bySQL == nil {
		d.bySQL = map[string]*lru.Element{}
	}
	if e, ok := d.bySQL[sql]; ok {
		e.Value.(*described).desc = desc
		d.order.MoveToFront(e)
		return
	}
	d.bySQL[sql] = d.order.PushFront(&described{sql, desc})
	if d.order.Len() > maxDescriptions {
		last := d.order.Back()
		d.order.Remove(last)
		delete(d.bySQL, last.Value.(*described).sql)
	}
}

func (d *descriptions) drop(sql string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.bySQL[sql]; ok {
		d.order.Remove(e)
		delete(d.bySQL, sql)
	}
}

// describe asks the server what a statement takes and gives, and keeps the answer. The
// error is as it came.
func (db *database) describe(ctx context.Context, c *conn, sql string) (*description, error) {
	sd, err := c.pg.Prepare(ctx, "", sql, nil)
	if err != nil {
		return nil, err
	}
	if old := db.descs.get(sql); old != nil && old.same(sd) {
		return old, nil // with what was learnt about it
	}
	oids := slices.Clone(sd.ParamOIDs)
	for _, f := range sd.Fields {
		oids = append(oids, f.DataTypeOID)
	}
	if err := db.types.load(ctx, c, oids); err != nil {
		return nil, err
	}
	desc := newDescription(sql, sd, db.planner(), nil)
	db.descs.put(sql, desc)
	return desc, nil
}

func (db *database) planner() planner { return planner{types: db.types.find} }

// typeCache is what was read from the server's catalogue of types. A type's identifier
// is not used again for another type, short of four billion of them.
type typeCache struct {
	mu    sync.RWMutex
	types map[uint32]typeInfo
}

func (tc *typeCache) find(oid uint32) (typeInfo, bool) {
	tc.mu.RLock()
	defer tc.mu.RUnlock()
	info, ok := tc.types[oid]
	return info, ok
}

// typesQuery follows domains to their base, whose modifier counts, and gives the
// element of what is an array of some type.
const typesQuery = `
with recursive t(oid, at, modifier, depth) as (
	select oid, oid, -1, 0 from pg_catalog.pg_type where oid = any($1::oid[])
	union all
	select t.oid, p.typbasetype, case when p.typtypmod <> -1 then p.typtypmod else t.modifier end, depth + 1
	from t join pg_catalog.pg_type p on p.oid = t.at and p.typtype = 'd'
)
select t.oid, pg_catalog.format_type(t.oid, null), case when t.depth > 0 then t.at else 0::oid end, t.modifier,
	coalesce((select e.oid from pg_catalog.pg_type e where e.typarray = t.at limit 1), 0::oid), b.typdelim
from t join pg_catalog.pg_type b on b.oid = t.at and b.typtype <> 'd'`

// load reads what is not known yet of the types, and of what they consist of.
func (tc *typeCache) load(ctx context.Context, c *conn, oids []uint32) error {
	for range 4 { // array of domain over array of domain is deeper than anyone goes
		missing := tc.missing(oids)
		if len(missing) == 0 {
			return nil
		}
		rows, err := c.query(ctx, typesQuery, "{"+strings.Join(missing, ",")+"}")
		if err != nil {
			return err
		}
		oids = tc.add(rows, missing)
	}
	return nil
}

func (tc *typeCache) missing(oids []uint32) (missing []string) {
	for _, oid := range oids {
		if _, known := tc.find(oid); !known && !isBuiltin(oid) {
			missing = append(missing, strconv.FormatUint(uint64(oid), 10))
		}
	}
	return missing
}

// add keeps the rows of typesQuery and returns the types that they refer to. Types
// that the server did not find are kept as unknown.
func (tc *typeCache) add(rows [][]*string, asked []string) (next []uint32) {
	tc.mu.Lock()
	defer tc.mu.Unlock()
	if tc.types == nil {
		tc.types = map[uint32]typeInfo{}
	}
	for _, oid := range asked {
		tc.types[number[uint32](oid)] = typeInfo{name: "type " + oid}
	}
	for _, r := range rows {
		info := typeInfo{
			name: text(r[1]), base: number[uint32](text(r[2])), baseMod: number[int32](text(r[3])),
			elem: number[uint32](text(r[4])), delim: ',',
		}
		if d := text(r[5]); d != "" {
			info.delim = d[0]
		}
		tc.types[number[uint32](text(r[0]))] = info
		next = append(next, info.base, info.elem)
	}
	return slices.DeleteFunc(next, func(oid uint32) bool { return oid == 0 })
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// number reads a number that the server wrote; 0 if it is none.
func number[T uint32 | int32 | int64](s string) T {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return T(n)
}

// query runs one of this package's own statements and returns its rows as text, nil for null.
func (c *conn) query(ctx context.Context, sql string, args ...any) ([][]*string, error) {
	var values [][]byte
	for _, a := range args {
		switch a := a.(type) {
		case string:
			values = append(values, []byte(a))
		case *string:
			if a == nil {
				values = append(values, nil)
			} else {
				values = append(values, []byte(*a))
			}
		}
	}
	res := c.pg.ExecParams(ctx, sql, values, nil, nil, nil).Read()
	if res.Err != nil {
		return nil, res.Err
	}
	rows := make([][]*string, len(res.Rows))
	for i, r := range res.Rows {
		for _, v := range r {
			var s *string
			if v != nil {
				t := string(v)
				s = &t
			}
			rows[i] = append(rows[i], s)
		}
	}
	return rows, nil
}
