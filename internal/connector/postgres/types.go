package postgres

import (
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
)

// Metadata keys of a field.
const (
	metaType = "postgres.type" // the type's name, as "numeric(10,2)" or "int4[]"
	metaText = "postgres.text" // why the column is text in place of its own type
)

// Formats of the protocol.
const (
	formatText   = 0
	formatBinary = 1
)

// Object identifiers of built-in types that need more than a table entry.
const (
	oidBool        = 16
	oidBytea       = 17
	oidText        = 25
	oidOID         = 26
	oidBpchar      = 1042
	oidVarchar     = 1043
	oidTimestamp   = 1114
	oidTimestamptz = 1184
	oidNumeric     = 1700
)

// typeInfo is what the server knows about a type.
type typeInfo struct {
	name    string
	base    uint32 // of a domain, resolved to the end; 0 otherwise
	baseMod int32  // the domain's type modifier
	elem    uint32 // of an array; 0 otherwise
	delim   byte   // between the elements of an array as text
}

// A catalogue finds a type's information; ok is false if it is not known (yet).
type catalogue func(oid uint32) (typeInfo, bool)

// builtin is a type that this package reads in binary, or knows by name.
type builtin struct {
	name string
	dt   arrow.DataType // nil: text format
	col  func() column
}

func textColumn() column   { return newVariable(arrow.BinaryTypes.String) }
func binaryColumn() column { return newVariable(arrow.BinaryTypes.Binary) }

var (
	timestampUS  = &arrow.TimestampType{Unit: arrow.Microsecond}
	timestampUTC = &arrow.TimestampType{Unit: arrow.Microsecond, TimeZone: "UTC"}
)

// builtins lists the types whose identifiers are the same on every server.
var builtins = map[uint32]builtin{
	oidBool:        {"bool", arrow.FixedWidthTypes.Boolean, func() column { return &boolean{} }},
	oidBytea:       {"bytea", arrow.BinaryTypes.Binary, binaryColumn},
	18:             {"char", nil, nil},
	19:             {"name", arrow.BinaryTypes.String, textColumn},
	20:             {"int8", arrow.PrimitiveTypes.Int64, newFixed(arrow.PrimitiveTypes.Int64, readInt64, blockInt64, arrow.Int64Traits.CastToBytes)},
	21:             {"int2", arrow.PrimitiveTypes.Int16, newFixed(arrow.PrimitiveTypes.Int16, readInt16, blockInt16, arrow.Int16Traits.CastToBytes)},
	23:             {"int4", arrow.PrimitiveTypes.Int32, newFixed(arrow.PrimitiveTypes.Int32, readInt32, block4[int32], arrow.Int32Traits.CastToBytes)},
	oidText:        {"text", arrow.BinaryTypes.String, textColumn},
	oidOID:         {"oid", arrow.PrimitiveTypes.Uint32, newFixed(arrow.PrimitiveTypes.Uint32, readUint32, block4[uint32], arrow.Uint32Traits.CastToBytes)},
	114:            {"json", arrow.BinaryTypes.String, textColumn},
	142:            {"xml", nil, nil},
	650:            {"cidr", nil, nil},
	700:            {"float4", arrow.PrimitiveTypes.Float32, newFixed(arrow.PrimitiveTypes.Float32, readFloat32, blockFloat32, arrow.Float32Traits.CastToBytes)},
	701:            {"float8", arrow.PrimitiveTypes.Float64, newFixed(arrow.PrimitiveTypes.Float64, readFloat64, blockFloat64, arrow.Float64Traits.CastToBytes)},
	705:            {"unknown", arrow.BinaryTypes.String, textColumn},
	774:            {"macaddr8", nil, nil},
	790:            {"money", nil, nil},
	829:            {"macaddr", nil, nil},
	869:            {"inet", nil, nil},
	oidBpchar:      {"bpchar", arrow.BinaryTypes.String, textColumn},
	oidVarchar:     {"varchar", arrow.BinaryTypes.String, textColumn},
	1082:           {"date", arrow.FixedWidthTypes.Date32, newFixed(arrow.FixedWidthTypes.Date32, readDate, blockDate, arrow.Date32Traits.CastToBytes)},
	1083:           {"time", arrow.FixedWidthTypes.Time64us, newFixed(arrow.FixedWidthTypes.Time64us, readTime, nil, arrow.Time64Traits.CastToBytes)},
	oidTimestamp:   {"timestamp", timestampUS, newFixed(timestampUS, readTimestamp, blockTimestamp, arrow.TimestampTraits.CastToBytes)},
	oidTimestamptz: {"timestamptz", timestampUTC, newFixed(timestampUTC, readTimestamp, blockTimestamp, arrow.TimestampTraits.CastToBytes)},
	1186:           {"interval", arrow.FixedWidthTypes.MonthDayNanoInterval, newFixed(arrow.FixedWidthTypes.MonthDayNanoInterval, readInterval, nil, arrow.MonthDayNanoIntervalTraits.CastToBytes)},
	1266:           {"timetz", nil, nil},
	1560:           {"bit", nil, nil},
	1562:           {"varbit", nil, nil},
	oidNumeric:     {"numeric", nil, nil}, // by its modifier: see numericType
	2950:           {"uuid", nil, nil},
	3802:           {"jsonb", nil, nil},
}

// builtinArrays maps built-in array types to their elements.
var builtinArrays = map[uint32]uint32{
	143: 142, 199: 114, 651: 650, 775: 774, 791: 790, 1000: oidBool, 1001: oidBytea, 1002: 18,
	1003: 19, 1005: 21, 1007: 23, 1009: oidText, 1014: oidBpchar, 1015: oidVarchar, 1016: 20,
	1021: 700, 1022: 701, 1028: oidOID, 1040: 829, 1041: 869, 1115: oidTimestamp, 1182: 1082,
	1183: 1083, 1185: oidTimestamptz, 1187: 1186, 1231: oidNumeric, 1270: 1266, 1561: 1560,
	1563: 1562, 2951: 2950, 3807: 3802,
}

// isBuiltin reports whether a type needs no catalogue.
func isBuiltin(oid uint32) bool {
	if _, ok := builtins[oid]; ok {
		return true
	}
	_, ok := builtinArrays[oid]
	return ok
}

// plan is how one column is asked for and read.
type plan struct {
	field  arrow.Field
	format int16
	col    func() column
}

// planner makes plans out of what the server says about columns.
type planner struct {
	types catalogue
}

// column plans one column. why is empty, or the reason to ask for it as text.
func (p planner) column(name string, oid uint32, typmod int32, why string) plan {
	pl := p.ofType(oid, typmod)
	meta := map[string]string{metaType: p.typeName(oid, typmod)}
	if why != "" {
		meta[metaText] = why
		pl = p.fallback(pl)
	}
	pl.field.Name, pl.field.Nullable, pl.field.Metadata = name, true, arrow.MetadataFrom(meta)
	return pl
}

// fallback is the plan for a column with values that its own type does not hold: text,
// or for what is text already, bytes.
func (p planner) fallback(own plan) plan {
	if own.field.Type.ID() == arrow.STRING {
		return plan{field: arrow.Field{Type: arrow.BinaryTypes.Binary}, format: own.format, col: binaryColumn}
	}
	return plan{field: arrow.Field{Type: arrow.BinaryTypes.String}, format: formatText, col: textColumn}
}

func (p planner) ofType(oid uint32, typmod int32) plan {
	oid, typmod = p.resolve(oid, typmod)
	if elem, delim := p.element(oid); elem != 0 {
		return p.list(elem, typmod, delim)
	}
	if oid == oidNumeric {
		return numericPlan(typmod)
	}
	b := builtins[oid]
	if b.dt == nil || b.dt.ID() == arrow.STRING {
		pl := plan{field: arrow.Field{Type: arrow.BinaryTypes.String}, format: formatText, col: textColumn}
		if b.dt != nil {
			pl.format = formatBinary // the same bytes, and cheaper in arrays
		}
		return pl
	}
	return plan{field: arrow.Field{Type: b.dt}, format: formatBinary, col: b.col}
}

// list plans an array: in binary if its elements come in binary, else as text that is
// split here.
func (p planner) list(elem uint32, typmod int32, delim byte) plan {
	el := p.ofType(elem, typmod)
	if el.field.Type.ID() == arrow.LIST { // an array of a domain over an array
		el = plan{field: arrow.Field{Type: arrow.BinaryTypes.String}, format: formatText, col: textColumn}
	}
	el.field.Name, el.field.Nullable = "item", true
	split := splitBinary
	if el.format == formatText {
		split = splitText(delim)
	}
	return plan{
		field:  arrow.Field{Type: arrow.ListOfField(el.field)},
		format: el.format,
		col:    newList(el.field, el.col, split),
	}
}

// resolve follows a domain to its base type.
func (p planner) resolve(oid uint32, typmod int32) (uint32, int32) {
	if isBuiltin(oid) {
		return oid, typmod
	}
	if info, ok := p.types(oid); ok && info.base != 0 {
		return info.base, info.baseMod
	}
	return oid, typmod
}

// element returns the element type of an array type, 0 for any other.
func (p planner) element(oid uint32) (elem uint32, delim byte) {
	if elem, ok := builtinArrays[oid]; ok {
		return elem, ','
	}
	if isBuiltin(oid) {
		return 0, 0
	}
	info, _ := p.types(oid)
	return info.elem, info.delim
}

// numericPlan decides by the modifier. The server also knows negative scales and
// scales beyond the precision; Arrow's readers don't, so the precision grows to hold both.
func numericPlan(typmod int32) plan {
	precision, scale, ok := numericModifier(typmod)
	if ok {
		precision, scale = max(precision, scale, precision-scale), max(scale, 0)
	}
	switch {
	case !ok || precision > 76:
		return plan{field: arrow.Field{Type: arrow.BinaryTypes.String}, format: formatText, col: textColumn}
	case precision > 38:
		return plan{field: arrow.Field{Type: &arrow.Decimal256Type{Precision: precision, Scale: scale}},
			format: formatBinary, col: newDecimal256(precision, scale)}
	}
	return plan{field: arrow.Field{Type: &arrow.Decimal128Type{Precision: precision, Scale: scale}},
		format: formatBinary, col: newDecimal128(precision, scale)}
}

// numericModifier takes a numeric's modifier apart: 11 bits of signed scale below the precision.
func numericModifier(typmod int32) (precision, scale int32, ok bool) {
	if typmod < 4 {
		return 0, 0, false
	}
	m := typmod - 4
	return m >> 16 & 0xffff, (m&0x7ff ^ 0x400) - 0x400, true
}

// typeName is the name for people: as in the catalogue, with the modifier and [].
func (p planner) typeName(oid uint32, typmod int32) string {
	oid, typmod = p.resolve(oid, typmod)
	if elem, _ := p.element(oid); elem != 0 {
		return p.typeName(elem, typmod) + "[]"
	}
	if b, ok := builtins[oid]; ok {
		return b.name + modifierText(oid, typmod)
	}
	if info, ok := p.types(oid); ok {
		return info.name
	}
	return fmt.Sprintf("type %d", oid)
}

func modifierText(oid uint32, typmod int32) string {
	switch oid {
	case oidNumeric:
		if p, s, ok := numericModifier(typmod); ok {
			return fmt.Sprintf("(%d,%d)", p, s)
		}
	case oidBpchar, oidVarchar:
		if typmod > 4 {
			return fmt.Sprintf("(%d)", typmod-4)
		}
	}
	return ""
}

// parameterSchema names the parameters as SQL does.
func (db *database) parameterSchema(d *description) *arrow.Schema {
	p := db.planner()
	var fields []arrow.Field
	for i, oid := range d.params {
		fields = append(fields, p.column(fmt.Sprintf("$%d", i+1), oid, -1, "").field)
	}
	return arrow.NewSchema(fields, nil)
}
