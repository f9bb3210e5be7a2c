package oci

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// TestAProgramThatIsBeingWritten: a program that changes all the time while it is copied is no
// version; once it is at rest it is one.
func TestAProgramThatIsBeingWritten(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	program, certs := filepath.Join(src, "program"), filepath.Join(src, "certs")
	for _, f := range []string{program, certs} {
		if err := os.WriteFile(f, []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stop, written := make(chan struct{}), make(chan error, 1)
	const large = 32 << 20 // copying it takes longer than changing it
	if err := os.Truncate(program, large); err != nil {
		t.Fatal(err)
	}
	go func() {
		for size := int64(large); ; size++ {
			select {
			case <-stop:
				written <- nil
				return
			default:
			}
			if err := os.Truncate(program, size); err != nil {
				written <- err
				return
			}
		}
	}()
	r := &rootfs{dir: filepath.Join(t.TempDir(), "rootfs"), program: program, caCerts: certs}
	if name, _, err := r.acquire(); errs.ClassOf(err) != errs.Unavailable || errs.As(err).Hint == "" {
		t.Errorf("while it is written: %q, %v", name, err)
	}
	close(stop)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if name, _, err := r.acquire(); name == "" || err != nil {
		t.Errorf("at rest: %q, %v", name, err)
	}
}

// TestCutOffRemovalIsMended: a version of which a part is gone, as a process leaves it
// that was killed while it removed the version, is not taken for whole.
func TestCutOffRemovalIsMended(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	program, certs := filepath.Join(src, "program"), filepath.Join(src, "certs")
	for _, f := range []string{program, certs} {
		if err := os.WriteFile(f, []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "rootfs")
	acquire := func() string {
		r := &rootfs{dir: dir, program: program, caCerts: certs} // a process of its own each time
		name, release, err := r.acquire()
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		return filepath.Join(dir, name)
	}
	for _, lost := range []string{"proc", "dev", programPath, caPath, "etc"} {
		path := acquire()
		if err := os.RemoveAll(filepath.Join(path, lost)); err != nil {
			t.Fatal(err)
		}
		if again := acquire(); again != path || !complete(path) {
			t.Errorf("without %s: %s is not complete again", lost, again)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: only the version should be there", entries, err)
	}
}
