package config

import (
	"encoding/json"
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"
)

const (
	maxDepth = 64     // of a document: cyclic aliases end here
	maxNodes = 500000 // of a document with its aliases written out
)

// yamlReader turns YAML nodes into a tree.
type yamlReader struct {
	nodes    int
	problems []problem
}

// bad reports a problem at a node.
func (r *yamlReader) bad(path string, n *yaml.Node, format string, args ...any) *tree {
	r.problems = append(r.problems, problem{field: path, line: n.Line, col: n.Column, reason: fmt.Sprintf(format, args...)})
	return &tree{shape: shapeBad, line: n.Line, col: n.Column}
}

func (r *yamlReader) read(path string, n *yaml.Node, depth int) *tree {
	r.nodes++
	switch {
	case r.nodes == maxNodes:
		return r.bad(path, n, "the document has more than %d values", maxNodes)
	case r.nodes > maxNodes:
		return &tree{shape: shapeBad}
	case depth > maxDepth:
		return r.bad(path, n, "nested deeper than %d levels", maxDepth)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return r.read(path, n.Alias, depth+1)
	case yaml.MappingNode:
		return r.mapping(path, n, depth)
	case yaml.SequenceNode:
		return r.list(path, n, depth)
	case yaml.ScalarNode:
		return r.scalar(path, n)
	}
	return r.bad(path, n, "neither a value, a list nor a mapping")
}

func (r *yamlReader) list(path string, n *yaml.Node, depth int) *tree {
	t := &tree{shape: shapeList, line: n.Line, col: n.Column}
	for i, item := range n.Content {
		t.items = append(t.items, r.read(path+"["+strconv.Itoa(i)+"]", item, depth+1))
	}
	return t
}

func (r *yamlReader) mapping(path string, n *yaml.Node, depth int) *tree {
	t := &tree{shape: shapeMapping, line: n.Line, col: n.Column}
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode || k.ShortTag() == "!!merge" {
			r.bad(path, k, "a key must be a plain word; merging (<<) is not supported")
			continue
		}
		at := join(path, k.Value)
		if first, twice := seen[k.Value]; twice {
			r.bad(at, k, "the key %q stands here twice, first on line %d", k.Value, first)
			continue
		}
		seen[k.Value] = k.Line
		t.entries = append(t.entries, entry{k.Value, k.Line, k.Column, r.read(at, n.Content[i+1], depth+1)})
	}
	return t
}

func (r *yamlReader) scalar(path string, n *yaml.Node) *tree {
	t := &tree{text: n.Value, line: n.Line, col: n.Column}
	switch tag := n.ShortTag(); tag {
	case "!!null":
		t.shape = shapeNull
	case "!!str", "!!timestamp":
		t.shape = shapeText
	case "!!bool":
		t.shape = shapeBool
	case "!!int", "!!float":
		return r.number(path, n, t)
	default:
		return r.bad(path, n, "the tag %s is not supported", tag)
	}
	return t
}

// number keeps what was written, for a field that holds text such as a port range,
// and its value in JSON's form.
func (r *yamlReader) number(path string, n *yaml.Node, t *tree) *tree {
	var v any
	if err := n.Decode(&v); err != nil {
		return r.bad(path, n, "%q is not a number", n.Value)
	}
	js, err := json.Marshal(v)
	if err != nil {
		return r.bad(path, n, "%s is not a number that has a use here", n.Value)
	}
	t.shape, t.number = shapeNumber, string(js)
	return t
}
