package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// rootfs builds the file system that all sandboxes share, read-only: the program, the
// CA certificates and mount points. Each version has a directory named by its content.
type rootfs struct {
	dir, program, caCerts string

	mu     sync.Mutex
	name   string         // of the present version, if stamp still holds
	stamp  [2]fileStamp   // of program and caCerts when name was computed
	starts map[string]int // starts under way, by version: their bundles may not exist yet
}

// fileStamp tells whether a file may have changed, without reading it.
type fileStamp struct {
	size  int64
	mtime int64
	file  fs.FileInfo
}

func (a fileStamp) same(b fileStamp) bool {
	return a.file != nil && b.file != nil && a.size == b.size && a.mtime == b.mtime && os.SameFile(a.file, b.file)
}

// Image implements sandbox.Imager. The CA certificates are part of what it names.
func (r *Runtime) Image() (string, error) {
	name, release, err := r.rootfs.acquire()
	if err == nil {
		release()
	}
	return name, err
}

// acquire returns the name of the present version, which is kept until release is called.
func (r *rootfs) acquire() (name string, release func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.ensure(); err != nil {
		return "", nil, err
	}
	if r.starts == nil {
		r.starts = map[string]int{}
	}
	name = r.name
	r.starts[name]++
	return name, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.starts[name]--
	}, nil
}

// steadyTries is how often a program that changes while it is copied is copied again.
const steadyTries = 5

// ensure makes the present version. What is written into place piece by piece is waited for,
// a little: a part of a program is no version.
func (r *rootfs) ensure() error {
	for range steadyTries {
		stamp, err := r.stamps()
		if err != nil {
			return err
		}
		if r.name != "" && same(stamp, r.stamp) && complete(r.path(r.name)) {
			return nil
		}
		name, err := r.build()
		if err != nil {
			return err
		}
		after, err := r.stamps()
		if err != nil {
			return err
		}
		if same(stamp, after) {
			r.name, r.stamp = name, stamp
			return nil
		}
	}
	return errs.New(errs.Unavailable, "the members' gateway program %s changes while it is read", r.program).
		WithHint("write the new one beside it and rename it into place")
}

func same(a, b [2]fileStamp) bool { return a[0].same(b[0]) && a[1].same(b[1]) }

func (r *rootfs) stamps() (out [2]fileStamp, err error) {
	for i, path := range []string{r.program, r.caCerts} {
		fi, err := os.Stat(path)
		if err != nil {
			return out, missing(path, err, i == 0)
		}
		out[i] = fileStamp{fi.Size(), fi.ModTime().UnixNano(), fi}
	}
	return out, nil
}

func missing(path string, err error, program bool) error {
	hint := "install the CA certificates: apt-get install ca-certificates"
	what := "CA certificates"
	if program {
		what, hint = "gateway program", "build it with: make build"
	}
	return errs.New(errs.Unavailable, "the members' %s %s can't be used: %w", what, path, err).WithHint("%s", hint)
}

// build copies into a new directory while hashing, then renames it to its hash.
func (r *rootfs) build() (name string, err error) {
	if err := os.MkdirAll(r.dir, 0o711); err != nil {
		return "", fmt.Errorf("build the members' root file system: %w", err)
	}
	tmp, err := os.MkdirTemp(r.dir, ".new-")
	if err != nil {
		return "", fmt.Errorf("build the members' root file system: %w", err)
	}
	defer os.RemoveAll(tmp)
	name, err = r.fill(tmp)
	if err == nil && !complete(r.path(name)) {
		if err = r.remove(name); err == nil { // what a removal that was cut off left
			err = os.Rename(tmp, r.path(name))
		}
	}
	if err != nil {
		return "", fmt.Errorf("build the members' root file system: %w", err)
	}
	return name, nil
}

// rootfsDirs are the directories of the file system, parents first.
var rootfsDirs = []string{"", "proc", "dev", "etc", "etc/ssl", "etc/ssl/certs"}

// complete reports whether a version has everything in it.
func complete(path string) bool {
	for _, p := range append([]string{programPath, caPath}, rootfsDirs...) {
		if _, err := os.Lstat(filepath.Join(path, p)); err != nil {
			return false
		}
	}
	return true
}

// remove takes a version's name away first, so that a removal that is cut off leaves
// nothing that looks like a version.
func (r *rootfs) remove(name string) error {
	gone := filepath.Join(r.dir, ".old-"+name)
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	if err := os.Rename(r.path(name), gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(gone)
}

func (r *rootfs) fill(dir string) (name string, err error) {
	for _, d := range rootfsDirs {
		path := filepath.Join(dir, d)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", err
		}
		if err := os.Chmod(path, 0o755); err != nil { // whatever the umask
			return "", err
		}
	}
	sum := sha256.New()
	if err := copyFile(filepath.Join(dir, programPath), r.program, 0o555, sum); err != nil {
		return "", err
	}
	if err := copyFile(filepath.Join(dir, caPath), r.caCerts, 0o444, sum); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// copyFile also feeds length and content to sum.
func copyFile(to, from string, mode os.FileMode, sum io.Writer) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	n, err := io.Copy(io.MultiWriter(out, sum), in)
	if err != nil {
		return err
	}
	fmt.Fprintf(sum, "\x00%d\x00", n)
	return out.Chmod(mode)
}

// prune removes versions that no bundle and no start under way stands on.
func (r *rootfs) prune(inUse func() map[string]bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	used := inUse()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}
	var failed []error
	for _, e := range entries {
		if name := e.Name(); name != r.name && !used[name] && r.starts[name] == 0 {
			failed = append(failed, r.remove(name))
		}
	}
	return errors.Join(failed...)
}
