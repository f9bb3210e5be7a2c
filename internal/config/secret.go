package config

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxSecret bounds the file that {file: PATH} names.
const maxSecret = 64 << 10

// secretSource resolves secrets that a file does not hold itself.
type secretSource struct {
	lookupEnv func(string) (string, bool)
	dir       string // relative paths start here: the folder of the file that names them
	unread    bool   // nobody wants them
}

// secretValue takes a secret as text or as a mapping that says where it is.
func (c *checker) secretValue(path string, t *tree) any {
	if t.shape != shapeMapping {
		if c.secrets != nil && (t.shape == shapeText || t.shape == shapeNumber) && t.text != "" {
			c.plain = append(c.plain, problem{field: path, line: t.line, col: t.col})
		}
		return c.text(path, t)
	}
	if c.secrets == nil {
		return c.bad(path, t, "must be text: {env: NAME} and {file: PATH} are resolved where the file is read")
	}
	if len(t.entries) != 1 {
		return c.bad(path, t, "must be text, {env: NAME} or {file: PATH}")
	}
	e := t.entries[0]
	c.mark(join(path, e.key), e)
	where := e.value
	if where.shape != shapeText || where.text == "" || (e.key != "env" && e.key != "file") {
		return c.bad(path, t, "must be text, {env: NAME} or {file: PATH}")
	}
	v, err := c.secrets.resolve(e.key, where.text)
	if err != nil {
		return c.bad(join(path, e.key), where, "%v", err)
	}
	return v
}

func (s *secretSource) resolve(from, what string) (string, error) {
	if s.unread {
		return "", nil
	}
	if from == "file" {
		return s.readFile(what)
	}
	v, ok := s.lookupEnv(what)
	if !ok {
		return "", fmt.Errorf("the environment variable %s is not set", what)
	}
	if v == "" {
		return "", fmt.Errorf("the environment variable %s is empty", what)
	}
	return v, nil
}

// readFile returns a file's text less one line end: editors and echo add it.
func (s *secretSource) readFile(name string) (string, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(s.dir, name)
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxSecret:
		return "", fmt.Errorf("%s is larger than %d bytes: not a password", name, maxSecret)
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) == 0 {
		return "", fmt.Errorf("%s is empty", name)
	}
	return string(b), nil
}
