package seal

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// maxKeyFile bounds what is read: a keyset of one key has under 200 bytes.
const maxKeyFile = 1 << 20

// OpenKeyFile reads the keys of a file. A missing file is made, for its owner alone,
// with a new key; of two programs that make it at once, both get the same. A file that
// its group or others can read or write, or that is another user's, is refused.
func OpenKeyFile(path string) (*Sealer, error) {
	keys, err := readKeys(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeKeys(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, classed(path, err)
		}
		keys, err = readKeys(path)
	}
	if err != nil {
		return nil, classed(path, err)
	}
	return newSealer(path, keys)
}

// classed gives errors of the file system their class; the others have one.
func classed(path string, err error) error {
	var known *errs.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, syscall.ENOSPC):
		return errs.New(errs.StorageFull, "no room is left for the key file %s: %w", path, err).WithHint("free space on its file system")
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.Invalid, "the folder of the key file %s does not exist: %w", path, err).WithHint("make the folder first")
	case errors.Is(err, fs.ErrPermission):
		return errs.New(errs.Denied, "the key file %s can't be opened: %w", path, err)
	}
	return errs.New(errs.Internal, "the key file %s can't be opened: %w", path, err)
}

func readKeys(path string) (*keyset.Handle, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not make it wait
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := checkOwner(path, f); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, err
	}
	keys, err := insecurecleartextkeyset.Read(keyset.NewJSONReader(bytes.NewReader(b)))
	if err != nil {
		// The cause is left out: it might quote the file.
		return nil, errs.New(errs.Internal, "the key file %s is damaged: it holds no keyset", path).
			WithHint("restore it from a copy; without it the stored credentials are lost, and each data source must be applied again with its password")
	}
	return keys, nil
}

// checkOwner refuses a key that somebody else can read.
func checkOwner(path string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errs.New(errs.Invalid, "the key file %s is not a file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return errs.New(errs.Denied, "the key file %s has the mode %04o: others than its owner can get at the key", path, mode).
			WithHint("chmod 600 %s; if others may have read it, replace the passwords that it seals", path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() && st.Uid != 0 {
		return errs.New(errs.Denied, "the key file %s belongs to user %d, the service runs as %d", path, st.Uid, os.Geteuid()).
			WithHint("chown %d %s", os.Geteuid(), path)
	}
	return nil
}

// makeKeys writes a new key to a file that does not exist yet. The file appears whole
// or not at all: it gets its name only when its content is on disk, and link(2), unlike
// rename(2), never takes the place of another.
func makeKeys(path string) error {
	keys, err := keyset.NewHandle(aead.XAES256GCM192BitNonceKeyTemplate())
	if err != nil {
		return errs.New(errs.Internal, "make a key: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".seal-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := insecurecleartextkeyset.Write(keys, keyset.NewJSONWriter(f)); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), os.Link(f.Name(), path)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
