package service

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-gateway/sluice/internal/core"
)

// HostToken is what a host must know to join: kept in a file of the data directory
// that only its owner can read, to be carried to each host once.
type HostToken struct{ secret core.Secret }

// OpenHostToken reads the file, or makes it.
func OpenHostToken(path string) (HostToken, error) {
	doc, err := os.ReadFile(path)
	if err == nil {
		if t := strings.TrimSpace(string(doc)); t != "" {
			return HostToken{core.NewSecret(t)}, nil
		}
		return HostToken{}, fmt.Errorf("host token file %s is empty: delete it and start again", path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return HostToken{}, fmt.Errorf("host token: %w", err)
	}
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the process instead
	token := "sluice_host_" + base64.RawURLEncoding.EncodeToString(raw[:])
	return HostToken{core.NewSecret(token)}, writeSecret(path, token+"\n")
}

// writeSecret makes a file of mode 0600, whole or not at all.
func writeSecret(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing is left if the rename happened
	if _, err := f.WriteString(content); err != nil {
		f.Close()
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Secret returns the token itself, for a host in the same process.
func (t HostToken) Secret() core.Secret { return t.secret }

// Matches compares in constant time.
func (t HostToken) Matches(token string) bool {
	return !t.secret.IsZero() && subtle.ConstantTimeCompare([]byte(t.secret.Reveal()), []byte(token)) == 1
}

func hexString(b []byte) string { return hex.EncodeToString(b) }
