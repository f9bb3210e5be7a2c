package config

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sluice-gateway/sluice/internal/core"
)

// maxFile is the size, in bytes, of the largest file that is read.
const maxFile = 16 << 20

// Options configure Load and Read.
type Options struct {
	// Stdin is read for the path "-". Required if one of the paths is that.
	Stdin io.Reader
	// LookupEnv finds what {env: NAME} names. Default: os.LookupEnv.
	LookupEnv func(string) (string, bool)
	// NamesOnly leaves secrets unread, for a caller that wants kinds and names alone.
	NamesOnly bool
}

// Document is one resource of a file.
type Document struct {
	Kind core.Kind
	Name string
	// JSON is the resource's fields, as service.Document takes them. Secrets in it are in
	// the clear: it goes to the service and nowhere else.
	JSON json.RawMessage

	file  string
	index map[string]Position
}

// Object returns "Kind/name".
func (d Document) Object() string { return objectName(d.Kind, d.Name) }

// String returns "Kind/name", so that printing a document shows no secret.
func (d Document) String() string { return d.Object() }

// GoString returns what String returns.
func (d Document) GoString() string { return d.Object() }

// At tells where a field such as "subnets[1].prefix" stands, or what would enclose it.
func (d Document) At(field string) Position {
	for {
		if at, ok := d.index[field]; ok {
			return at
		}
		cut := strings.LastIndexAny(field, ".[")
		if cut < 0 {
			return d.index[""]
		}
		field = field[:cut]
	}
}

// Result is what the files hold.
type Result struct {
	Documents []Document
	Warnings  []*Error
}

// Load reads the documents of files, of the *.yaml and *.yml files of folders (by
// name, not those in folders below) and, for "-", of standard input. It returns
// either documents or Errors with every problem that was found.
func Load(opts Options, paths ...string) (Result, error) {
	l := newLoader(opts)
	for _, p := range paths {
		l.path(p)
	}
	return l.result()
}

// Read reads the documents of r; name stands for the file in positions.
func Read(opts Options, name string, r io.Reader) (Result, error) {
	l := newLoader(opts)
	l.stream(name, ".", r)
	return l.result()
}

// loader collects documents and problems over all files.
type loader struct {
	opts     Options
	docs     []Document
	warnings []*Error
	errors   Errors
	seen     map[string]Position // by Object, what was declared already
	last     string              // the file read last
}

func newLoader(opts Options) *loader {
	if opts.LookupEnv == nil {
		opts.LookupEnv = os.LookupEnv
	}
	return &loader{opts: opts, seen: map[string]Position{}}
}

func (l *loader) result() (Result, error) {
	if len(l.errors) == 0 && len(l.docs) == 0 {
		l.fail(Position{File: l.last}, "no resource found", "a resource begins with kind: and name:")
	}
	if len(l.errors) > 0 {
		return Result{Warnings: l.warnings}, l.errors
	}
	return Result{Documents: l.docs, Warnings: l.warnings}, nil
}

func (l *loader) fail(at Position, reason, hint string) {
	l.errors = append(l.errors, &Error{Position: at, Reason: reason, Hint: hint})
}

func (l *loader) path(path string) {
	if path == "-" {
		l.stdin()
		return
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		l.fail(Position{File: path}, reasonOf(err), "")
	case info.IsDir():
		l.dir(path)
	default:
		l.file(path)
	}
}

// reasonOf leaves out the path and the call, which the position says.
func reasonOf(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

func (l *loader) stdin() {
	if l.opts.Stdin == nil {
		l.fail(Position{File: "stdin"}, "there is no standard input", "")
		return
	}
	l.stream("stdin", ".", l.opts.Stdin)
}

func (l *loader) dir(path string) {
	entries, err := os.ReadDir(path)
	if err != nil {
		l.fail(Position{File: path}, reasonOf(err), "")
		return
	}
	found := false
	for _, e := range entries { // sorted by name
		ext := filepath.Ext(e.Name())
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") || (ext != ".yaml" && ext != ".yml") {
			continue
		}
		found = true
		l.file(filepath.Join(path, e.Name()))
	}
	if !found {
		l.fail(Position{File: path}, "the folder holds no *.yaml or *.yml file", "")
	}
}

func (l *loader) file(path string) {
	f, err := os.Open(path)
	if err != nil {
		l.fail(Position{File: path}, reasonOf(err), "")
		return
	}
	defer f.Close()
	l.stream(path, filepath.Dir(path), f)
}

// stream reads the documents of r. What follows a syntax error can't be read.
func (l *loader) stream(name, dir string, r io.Reader) {
	l.last = name
	limited := &io.LimitedReader{R: r, N: maxFile + 1}
	dec := yaml.NewDecoder(limited)
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if limited.N <= 0 {
			l.fail(Position{File: name}, fmt.Sprintf("is larger than %d MiB", maxFile>>20), "")
			return
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			l.syntax(name, err)
			return
		}
		if n.Kind == yaml.DocumentNode && len(n.Content) == 1 && n.Content[0].ShortTag() != "!!null" {
			l.document(name, dir, n.Content[0])
		}
	}
}

var (
	// yamlLine matches the library's messages, which carry the line in their text.
	yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)
	// yamlEnclosed matches those that give the line, from 0, of what
	// encloses the fault, or where it was noticed.
	yamlEnclosed = regexp.MustCompile(`^did not find expected (<document start>|node content|'-' indicator|key|',' or .*)$`)
)

func (l *loader) syntax(name string, err error) {
	at, reason := Position{File: name}, reasonOf(err)
	if m := yamlLine.FindStringSubmatch(reason); m != nil {
		at.Line, _ = strconv.Atoi(m[1]) // 0, if there is none, means the first
		reason = "not valid YAML: " + m[2]
		if yamlEnclosed.MatchString(m[2]) {
			at.Line++
			reason = "not valid YAML around here: " + m[2]
		}
		at.Line = max(at.Line, 1)
	}
	l.fail(at, reason, "")
}

// document checks one document of a file.
func (l *loader) document(name, dir string, n *yaml.Node) {
	r := &yamlReader{}
	t := r.read("", n, 0)
	c := &checker{
		problems: r.problems, yaml: true, file: name,
		index:   map[string]Position{"": {File: name, Line: n.Line, Column: n.Column}},
		secrets: &secretSource{lookupEnv: l.opts.LookupEnv, dir: dir, unread: l.opts.NamesOnly},
	}
	d := Document{Kind: core.Kind(t.textOf("kind")), Name: t.textOf("name"), file: name, index: c.index}
	if c.kind(t, d.Kind) {
		d.JSON = c.fields(d.Kind, t)
	}
	l.unique(c, d)
	if len(c.problems) == 0 {
		c.decode(d.Kind, d.JSON, t)
	}
	l.report(c, d)
	l.docs = append(l.docs, d)
}

// kind checks that a document says of what kind it is.
func (c *checker) kind(t *tree, kind core.Kind) bool {
	if t.shape != shapeMapping {
		if t.shape != shapeBad {
			c.bad("", t, "a resource is a mapping that begins with kind: and name:, not %s", t.shape)
		}
		return false
	}
	at := t.find("kind")
	if at != nil {
		c.index["kind"] = Position{File: c.file, Line: at.line, Column: at.col}
	}
	switch {
	case kind == "":
		c.bad("kind", orSelf(at, t), "the resource does not say its kind: %s", strings.TrimPrefix(unknownKind("?"), `unknown kind "?": `))
		return false
	case core.New(kind) == nil:
		c.bad("kind", at, "%s", unknownKind(string(kind)))
		return false
	}
	return true
}

// unique refuses a resource that another document declares.
func (l *loader) unique(c *checker, d Document) {
	if d.Name == "" || core.New(d.Kind) == nil {
		return
	}
	if first, twice := l.seen[d.Object()]; twice {
		at := d.At("name")
		c.bad("name", &tree{line: at.Line, col: at.Column}, "%s is declared twice, first at %s", d.Object(), first)
		return
	}
	l.seen[d.Object()] = d.At("")
}

func (l *loader) report(c *checker, d Document) {
	slices.SortStableFunc(c.problems, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.col, b.col))
	})
	for _, p := range c.problems {
		l.errors = append(l.errors, d.error(p))
	}
	for _, p := range c.plain {
		p.reason = "a password stands in the clear in this file"
		p.hint = "write {env: NAME} or {file: PATH} in its place"
		l.warnings = append(l.warnings, d.error(p))
	}
}

func (d Document) error(p problem) *Error {
	return &Error{
		Position: Position{File: d.file, Line: p.line, Column: p.col},
		Object:   d.Object(), Field: p.field, Reason: p.reason, Hint: p.hint,
	}
}
