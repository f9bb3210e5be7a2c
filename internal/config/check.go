package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"

	"github.com/sluice-gateway/sluice/internal/core"
)

var (
	secretType = reflect.TypeFor[core.Secret]()
	prefixType = reflect.TypeFor[netip.Prefix]()
	addrType   = reflect.TypeFor[netip.Addr]()
)

// checker compares a tree with a Go type and makes of it JSON that decodes into that
// type. It goes on after a problem.
type checker struct {
	problems []problem
	// yaml says that the tree came from a file, where text needs no quotes: a number
	// where text belongs is taken as it was written.
	yaml bool
	// index gets the place of each field, if it is not nil.
	index map[string]Position
	file  string
	// secrets resolves a secret that is a mapping; nil where only text will do.
	secrets *secretSource
	// plain collects the secrets that stand there in the clear.
	plain []problem
}

// absent is what a value that is not there gives.
type absent struct{}

func (c *checker) bad(path string, t *tree, format string, args ...any) any {
	c.problems = append(c.problems, problem{field: path, line: t.line, col: t.col, reason: fmt.Sprintf(format, args...)})
	return absent{}
}

// resource checks a document against its kind and decodes it; nil after a problem.
func (c *checker) resource(kind core.Kind, t *tree) core.Resource {
	raw := c.fields(kind, t)
	if len(c.problems) > 0 {
		return nil
	}
	return c.decode(kind, raw, t)
}

// decode makes the resource of the JSON that was made of t.
func (c *checker) decode(kind core.Kind, raw json.RawMessage, t *tree) core.Resource {
	res := core.New(kind)
	if err := json.Unmarshal(raw, res); err != nil {
		c.bad("", t, "%v", err)
		return nil
	}
	return res
}

// fields checks a document against its kind and returns its fields as JSON.
func (c *checker) fields(kind core.Kind, t *tree) json.RawMessage {
	if t.shape != shapeMapping {
		if t.shape != shapeBad {
			c.bad("", t, "a resource is a mapping, not %s", t.shape)
		}
		return nil
	}
	v := c.value("", reflect.TypeOf(core.New(kind)).Elem(), t.without("kind", "status"))
	if name := t.find("name"); name == nil || name.shape == shapeNull || (name.shape == shapeText && name.text == "") {
		c.bad("name", orSelf(name, t), "a %s needs a name", kind)
	}
	raw, err := marshal(v)
	if err != nil {
		c.bad("", t, "%v", err)
	}
	return raw
}

func orSelf(t, other *tree) *tree {
	if t == nil {
		return other
	}
	return t
}

// marshal leaves <, > and & as they are: the text is for people too.
func marshal(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// value checks t against a type and returns what json.Marshal makes the field's JSON of.
func (c *checker) value(path string, typ reflect.Type, t *tree) any {
	if typ.Kind() == reflect.Pointer {
		return c.value(path, typ.Elem(), t)
	}
	switch {
	case t.shape == shapeNull, t.shape == shapeBad:
		return absent{}
	case typ == secretType:
		return c.secretValue(path, t)
	case isText(typ):
		return c.parsed(path, typ, t)
	}
	switch typ.Kind() {
	case reflect.Struct:
		return c.structure(path, typ, t)
	case reflect.Map:
		return c.mapping(path, typ, t)
	case reflect.Slice:
		return c.list(path, typ, t)
	case reflect.String:
		return c.text(path, t)
	case reflect.Bool:
		return c.boolean(path, t)
	default:
		return c.number(path, typ, t)
	}
}

// isText reports whether values of a type are written as text that the type parses.
func isText(typ reflect.Type) bool {
	p := reflect.PointerTo(typ)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func (c *checker) structure(path string, typ reflect.Type, t *tree) any {
	if t.shape != shapeMapping {
		return c.bad(path, t, "must be a mapping of fields, not %s", t.shape)
	}
	known := fieldsOf(typ)
	out := map[string]any{}
	for _, e := range t.entries {
		at := join(path, e.key)
		c.mark(at, e)
		ft, ok := known[e.key]
		if !ok {
			c.bad(at, &tree{line: e.line, col: e.col}, "%s", unknownField(e.key, known))
			continue
		}
		if v := c.value(at, ft, e.value); v != (any)(absent{}) {
			out[e.key] = v
		}
	}
	return out
}

// mapping is for maps of text. Numbers and booleans are taken as they were written:
// a port needs no quotes.
func (c *checker) mapping(path string, typ reflect.Type, t *tree) any {
	if t.shape != shapeMapping {
		return c.bad(path, t, "must be a mapping of names to values, not %s", t.shape)
	}
	out := map[string]any{}
	for _, e := range t.entries {
		at := join(path, e.key)
		c.mark(at, e)
		switch e.value.shape {
		case shapeNumber, shapeBool:
			out[e.key] = e.value.text
			continue
		}
		if v := c.value(at, typ.Elem(), e.value); v != (any)(absent{}) {
			out[e.key] = v
		}
	}
	return out
}

func (c *checker) list(path string, typ reflect.Type, t *tree) any {
	if t.shape != shapeList {
		return c.bad(path, t, "must be a list, not %s", t.shape)
	}
	out := make([]any, 0, len(t.items))
	for i, item := range t.items {
		at := path + "[" + strconv.Itoa(i) + "]"
		c.mark(at, entry{line: item.line, col: item.col, value: item})
		if item.shape == shapeNull {
			c.bad(at, item, "is empty")
			continue
		}
		out = append(out, c.value(at, typ.Elem(), item))
	}
	return out
}

// mark notes where a field stands: a scalar at itself, what is larger at its key.
func (c *checker) mark(path string, e entry) {
	if c.index == nil {
		return
	}
	line, col := e.line, e.col
	if v := e.value; v.line > 0 && v.shape != shapeList && v.shape != shapeMapping {
		line, col = v.line, v.col
	}
	c.index[path] = Position{File: c.file, Line: line, Column: col}
}

func (c *checker) text(path string, t *tree) any {
	if t.shape == shapeText || (c.yaml && t.shape == shapeNumber) {
		return t.text
	}
	if c.yaml && t.shape == shapeBool {
		return c.bad(path, t, "must be text; put %s in quotes if it is meant", t.text)
	}
	return c.bad(path, t, "must be text, not %s", t.shape)
}

func (c *checker) boolean(path string, t *tree) any {
	if t.shape != shapeBool {
		return c.bad(path, t, "must be true or false, not %s", describe(t))
	}
	v, err := strconv.ParseBool(t.text)
	if err != nil {
		return c.bad(path, t, "must be true or false, not %s", describe(t))
	}
	return v
}

// number is for the integers and floats of any size.
func (c *checker) number(path string, typ reflect.Type, t *tree) any {
	if t.shape != shapeNumber {
		return c.bad(path, t, "must be a number, not %s", describe(t))
	}
	if err := json.Unmarshal([]byte(t.number), reflect.New(typ).Interface()); err != nil {
		if typ.Kind() == reflect.Float64 {
			return c.bad(path, t, "the number %s is out of range", t.text)
		}
		return c.bad(path, t, "must be a whole number within %d bits, not %s", typ.Bits(), t.text)
	}
	return json.Number(t.number)
}

// parsed is for types that read their own text: prefixes, addresses, durations.
func (c *checker) parsed(path string, typ reflect.Type, t *tree) any {
	if t.shape != shapeText && !(c.yaml && t.shape == shapeNumber) {
		return c.bad(path, t, "must be text, not %s", t.shape)
	}
	quoted, err := marshal(t.text)
	if err != nil {
		return c.bad(path, t, "%v", err)
	}
	if err := json.Unmarshal(quoted, reflect.New(typ).Interface()); err != nil {
		return c.bad(path, t, "%s", parseReason(typ, t.text, err))
	}
	return t.text
}

// parseReason words why text is not a value of a type.
func parseReason(typ reflect.Type, text string, err error) string {
	switch typ {
	case prefixType:
		return fmt.Sprintf("%q is not a prefix such as 10.20.0.0/16", text)
	case addrType:
		return fmt.Sprintf("%q is not an address such as 10.20.1.4", text)
	}
	return err.Error()
}

// describe names what stands there, with its text if it is short.
func describe(t *tree) string {
	if t.shape == shapeText && len(t.text) <= 40 {
		return strconv.Quote(t.text)
	}
	return t.shape.String()
}
