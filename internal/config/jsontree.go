package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// DecodeJSON decodes the fields of one resource as strictly as files are read. "kind"
// and "status" are passed over. Either the resource or at least one error is
// returned; each has the class Invalid, and its Object and Field set.
func DecodeJSON(kind core.Kind, raw json.RawMessage) (core.Resource, []*errs.Error) {
	if core.New(kind) == nil {
		return nil, []*errs.Error{errs.New(errs.Invalid, "%s", unknownKind(string(kind))).On(string(kind), "kind")}
	}
	r := &jsonReader{dec: json.NewDecoder(bytes.NewReader(raw))}
	r.dec.UseNumber()
	t, err := r.document()
	if err != nil {
		return nil, []*errs.Error{errs.New(errs.Invalid, "not a JSON object: %w", err).On(string(kind), "")}
	}
	c := &checker{problems: r.problems}
	res := c.resource(kind, t)
	if len(c.problems) == 0 {
		return res, nil
	}
	var out []*errs.Error
	object := objectName(kind, t.textOf("name"))
	for _, p := range c.problems {
		out = append(out, (&errs.Error{Class: errs.Invalid, Message: p.reason, Hint: p.hint}).On(object, p.field))
	}
	return nil, out
}

// jsonReader turns JSON into a tree. encoding/json alone would take a key twice, in any
// case, and stop at the first problem.
type jsonReader struct {
	dec      *json.Decoder
	problems []problem
}

func (r *jsonReader) document() (*tree, error) {
	t, err := r.read("", 0)
	if err != nil {
		return nil, err
	}
	if _, err := r.dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the object")
	}
	return t, nil
}

func (r *jsonReader) read(path string, depth int) (*tree, error) {
	tok, err := r.dec.Token()
	if err == io.EOF {
		return nil, io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	return r.value(path, tok, depth)
}

func (r *jsonReader) value(path string, tok json.Token, depth int) (*tree, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	switch v := tok.(type) {
	case string:
		return &tree{shape: shapeText, text: v}, nil
	case json.Number:
		return &tree{shape: shapeNumber, text: v.String(), number: v.String()}, nil
	case bool:
		return &tree{shape: shapeBool, text: strconv.FormatBool(v)}, nil
	case json.Delim:
		if v == '[' {
			return r.list(path, depth)
		}
		return r.mapping(path, depth)
	}
	return &tree{shape: shapeNull}, nil
}

// end reads the bracket that closes a list or a mapping.
func (r *jsonReader) end() error {
	_, err := r.dec.Token()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *jsonReader) list(path string, depth int) (*tree, error) {
	t := &tree{shape: shapeList}
	for r.dec.More() {
		item, err := r.read(fmt.Sprintf("%s[%d]", path, len(t.items)), depth+1)
		if err != nil {
			return nil, err
		}
		t.items = append(t.items, item)
	}
	return t, r.end()
}

func (r *jsonReader) mapping(path string, depth int) (*tree, error) {
	t := &tree{shape: shapeMapping}
	seen := map[string]bool{}
	for r.dec.More() {
		tok, err := r.dec.Token()
		if err != nil {
			return nil, err
		}
		key, _ := tok.(string)
		v, err := r.read(join(path, key), depth+1)
		if err != nil {
			return nil, err
		}
		if seen[key] {
			r.problems = append(r.problems, problem{field: join(path, key), reason: fmt.Sprintf("the key %q stands here twice", key)})
			continue
		}
		seen[key] = true
		t.entries = append(t.entries, entry{key: key, value: v})
	}
	return t, r.end()
}
