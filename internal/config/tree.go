package config

// shape is what a node of a document is.
type shape int

const (
	shapeNull shape = iota
	shapeText
	shapeNumber
	shapeBool
	shapeList
	shapeMapping
	shapeBad // reported already, to be passed over
)

// String names the shape as messages do.
func (s shape) String() string {
	return [...]string{"nothing", "text", "a number", "true or false", "a list", "a mapping", "malformed"}[s]
}

// tree is a document, whether it came as YAML or as JSON.
type tree struct {
	shape     shape
	text      string // of a scalar, as it was written
	number    string // of a number, in JSON's form
	items     []*tree
	entries   []entry
	line, col int // 0 in JSON
}

// entry is one key of a mapping with its value.
type entry struct {
	key       string
	line, col int
	value     *tree
}

// find returns the value of a key, or nil.
func (t *tree) find(key string) *tree {
	for _, e := range t.entries {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

// textOf returns the text under a key, or "" if there is none.
func (t *tree) textOf(key string) string {
	v := t.find(key)
	if v == nil || (v.shape != shapeText && v.shape != shapeNumber) {
		return ""
	}
	return v.text
}

// without returns the mapping less the keys given.
func (t *tree) without(keys ...string) *tree {
	out := *t
	out.entries = nil
next:
	for _, e := range t.entries {
		for _, k := range keys {
			if e.key == k {
				continue next
			}
		}
		out.entries = append(out.entries, e)
	}
	return &out
}

// problem is something wrong at a place in a document.
type problem struct {
	field     string
	line, col int
	reason    string
	hint      string
}

// join appends a key to a path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
