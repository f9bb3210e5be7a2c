package seal_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/seal"
)

func open(t *testing.T, path string) *seal.Sealer {
	t.Helper()
	s, err := seal.OpenKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustSeal(t *testing.T, s *seal.Sealer, plaintext string, context ...string) []byte {
	t.Helper()
	sealed, err := s.Seal(core.NewSecret(plaintext), context...)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "seal.key")
	s := open(t, path)
	for _, plaintext := range []string{"correct horse battery staple", "", "ü\x00\xff", strings.Repeat("x", 1<<16)} {
		sealed := mustSeal(t, s, plaintext, "default", "uid-1", "password")
		if plaintext != "" && bytes.Contains(sealed, []byte(plaintext)) {
			t.Errorf("what is sealed contains %.20q", plaintext)
		}
		if again := mustSeal(t, s, plaintext, "default", "uid-1", "password"); bytes.Equal(sealed, again) {
			t.Errorf("%.20q gives the same bytes twice", plaintext)
		}
		got, err := open(t, path).Open(sealed, "default", "uid-1", "password") // after a restart
		if err != nil || got.Reveal() != plaintext {
			t.Errorf("%.20q: %v", plaintext, err)
		}
	}
}

// A sealed value opens only at its own place, whole, and with its own key.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "seal.key"))
	sealed := mustSeal(t, s, "secret", "t1", "uid", "password")
	for name, context := range map[string][]string{
		"another tenant":     {"t2", "uid", "password"},
		"another owner":      {"t1", "uid2", "password"},
		"another field":      {"t1", "uid", "key"},
		"another order":      {"uid", "t1", "password"},
		"less":               {"t1", "uid"},
		"none":               nil,
		"more":               {"t1", "uid", "password", ""},
		"the words run on":   {"t1uid", "", "password"},
		"a word's end moved": {"t1u", "id", "password"},
	} {
		refused(t, name, s, sealed, "secret", context...)
	}
	flipped := bytes.Clone(sealed)
	for i := range flipped {
		flipped[i] ^= 1
		refused(t, "changed", s, flipped, "secret", "t1", "uid", "password")
		flipped[i] ^= 1
	}
	refused(t, "cut off", s, sealed[:len(sealed)-1], "secret", "t1", "uid", "password")
	refused(t, "empty", s, nil, "secret", "t1", "uid", "password")
	refused(t, "another key", open(t, filepath.Join(t.TempDir(), "seal.key")), sealed, "secret", "t1", "uid", "password")
}

func refused(t *testing.T, name string, s *seal.Sealer, sealed []byte, plaintext string, context ...string) {
	t.Helper()
	got, err := s.Open(sealed, context...)
	if err == nil || !got.IsZero() {
		t.Errorf("%s: opened", name)
		return
	}
	if e := errs.As(err); e.Class != errs.Internal || e.Hint == "" || strings.Contains(e.Message, plaintext+"\"") {
		t.Errorf("%s: %v", name, err)
	}
}

func TestKeyFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "seal.key")
	open(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	before, _ := os.ReadFile(path)
	open(t, path)
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("opening changed the file")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestKeyFileRefused(t *testing.T) {
	t.Parallel()
	made := func(t *testing.T) string {
		path := filepath.Join(t.TempDir(), "seal.key")
		open(t, path)
		return path
	}
	chmod := func(mode os.FileMode) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := made(t)
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	content := func(b string) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := made(t)
			if err := os.WriteFile(path, []byte(b), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T) string
		class   errs.Class
		hint    string
	}{
		"readable by the group":  {chmod(0o640), errs.Denied, "chmod 600 "},
		"readable by others":     {chmod(0o604), errs.Denied, "chmod 600 "},
		"writable by others":     {chmod(0o602), errs.Denied, "chmod 600 "},
		"empty":                  {content(""), errs.Internal, "restore it"},
		"not a keyset":           {content(`{"primaryKeyId": "s3cret"}`), errs.Internal, "restore it"},
		"a missing folder":       {func(t *testing.T) string { return filepath.Join(t.TempDir(), "x", "k") }, errs.Invalid, "make the folder"},
		"a folder":               {func(t *testing.T) string { return t.TempDir() }, errs.Invalid, ""},
		"a FIFO without writers": {fifo, errs.Invalid, ""},
		"another user's":         {anothers(made), errs.Denied, "chown "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := c.prepare(t)
			_, err := seal.OpenKeyFile(path)
			if err == nil {
				t.Fatal("opened")
			}
			e := errs.As(err)
			if e.Class != c.class || !strings.Contains(e.Hint, c.hint) || !strings.Contains(e.Message, path) || strings.Contains(e.Message, "s3cret") {
				t.Errorf("%s: %v (hint %q)", e.Class, err, e.Hint)
			}
		})
	}
}

func fifo(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "k")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func anothers(made func(t *testing.T) string) func(t *testing.T) string {
	return func(t *testing.T) string {
		if os.Geteuid() != 0 {
			t.Skip("giving a file away needs root")
		}
		path := made(t)
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// Programs that make the file at once all end up with the same key.
func TestKeyFileMadeAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "seal.key")
	sealers := make([]*seal.Sealer, 8)
	var wg sync.WaitGroup
	for i := range sealers {
		wg.Go(func() {
			s, err := seal.OpenKeyFile(path)
			if err != nil {
				t.Error(err)
			}
			sealers[i] = s
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	sealed := mustSeal(t, sealers[0], "secret", "c")
	for i, s := range sealers {
		if got, err := s.Open(sealed, "c"); err != nil || got.Reveal() != "secret" {
			t.Errorf("%d: %v", i, err)
		}
	}
}
