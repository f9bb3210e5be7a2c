package oci

import (
	"os"
	"path/filepath"
	"testing"
)

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
