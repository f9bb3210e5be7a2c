package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Kernel is one that was unpacked, and not installed.
type Kernel struct {
	Version string // as uname -r says it
	Image   string
	Modules string // the folder of every version's modules
}

// FindKernel returns the stock kernel of this machine's Debian. It is downloaded from where the
// machine has its packages from, once, and kept in the folder cache.
func FindKernel(ctx context.Context, cache string) (Kernel, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kernel{}, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return Kernel{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Kernel{}, err
	}
	if k, err := kernelIn(filepath.Join(cache, "kernel")); err == nil {
		return k, nil
	}
	if err := download(ctx, cache); err != nil {
		return Kernel{}, fmt.Errorf("downloading Debian's kernel: %w", err)
	}
	return kernelIn(filepath.Join(cache, "kernel"))
}

func kernelIn(dir string) (Kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, errors.Join(err, fmt.Errorf("%s has %d kernels, not one", dir, len(images)))
	}
	k := Kernel{strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"), images[0], filepath.Join(dir, "lib", "modules")}
	_, err = os.Stat(k.list())
	return k, err
}

// list is the file that says which modules need which.
func (k Kernel) list() string { return filepath.Join(k.Modules, k.Version, "modules.dep") }

// metaPackage depends on the newest stock kernel.
const metaPackage = "linux-image-amd64"

var kernelPackage = regexp.MustCompile(`Depends: (linux-image-[0-9][^ \n]*)`)

// download leaves the kernel in cache/kernel, whole or not at all.
func download(ctx context.Context, cache string) error {
	dir, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	name, err := newest(ctx)
	if err != nil {
		if _, err := run(ctx, dir, "apt-get", "update", "-q"); err != nil { // a machine that never asked has no lists
			return err
		}
		if name, err = newest(ctx); err != nil {
			return err
		}
	}
	if _, err := run(ctx, dir, "apt-get", "download", "-q", name); err != nil { // lists may be older than the archive
		if _, err := run(ctx, dir, "apt-get", "update", "-q"); err != nil {
			return err
		}
		if name, err = newest(ctx); err != nil {
			return err
		}
		if _, err := run(ctx, dir, "apt-get", "download", "-q", name); err != nil {
			return err
		}
	}
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(packages) != 1 {
		return errors.Join(err, fmt.Errorf("apt-get download %s left %d packages", name, len(packages)))
	}
	root := filepath.Join(dir, "root")
	if _, err := run(ctx, dir, "dpkg", "-x", packages[0], root); err != nil {
		return err
	}
	version := strings.TrimPrefix(name, "linux-image-")
	if _, err := run(ctx, dir, "/sbin/depmod", "-b", root, version); err != nil {
		return err
	}
	if err := unpackImage(ctx, filepath.Join(root, "boot", "vmlinuz-"+version)); err != nil {
		return err
	}
	return os.Rename(root, filepath.Join(cache, "kernel"))
}

// unpackImage replaces an image that unpacks itself by what is in it, which an emulated processor
// is spared from doing at every boot. One that is not packed by xz stays as it is.
func unpackImage(ctx context.Context, path string) error {
	image, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	at := bytes.Index(image, []byte("\xfd7zXZ\x00"))
	if at < 0 {
		return nil
	}
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--single-stream", "--stdout")
	cmd.Stdin = bytes.NewReader(image[at:])
	plain, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("unpacking %s with xz (package xz-utils): %w", path, err)
	}
	if !bytes.HasPrefix(plain, []byte("\x7fELF")) {
		return fmt.Errorf("%s holds no ELF file", path)
	}
	return os.WriteFile(path, plain, 0o644)
}

func newest(ctx context.Context) (string, error) {
	out, err := run(ctx, "/", "apt-cache", "depends", metaPackage)
	if err != nil {
		return "", err
	}
	m := kernelPackage.FindStringSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("apt knows no kernel that %s depends on: %s", metaPackage, out)
	}
	return m[1], nil
}

func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// modules lists the files of modules and of what they need, in an order to load them in.
func (k Kernel) modules(names []string) ([]string, error) {
	text, err := os.ReadFile(k.list())
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{} // by name: the module's file, then what it needs
	for line := range strings.Lines(string(text)) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok {
			needs[moduleName(file)] = append([]string{file}, strings.Fields(rest)...)
		}
	}
	var out []string
	for _, name := range names {
		files := needs[name]
		if files == nil {
			return nil, fmt.Errorf("kernel %s has no module %s", k.Version, name)
		}
		for _, file := range slices.Backward(files) { // depmod writes what is needed first last
			if path := filepath.Join(k.Modules, k.Version, file); !slices.Contains(out, path) {
				out = append(out, path)
			}
		}
	}
	return out, nil
}

func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}
