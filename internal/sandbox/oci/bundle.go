package oci

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/sandbox"
)

// bundle is the directory of one sandbox.
type bundle string

func (r *Runtime) bundles() string { return filepath.Join(r.opts.Dir, "bundles") }

func (r *Runtime) bundle(id string) bundle { return bundle(filepath.Join(r.bundles(), id)) }

func (b bundle) pidFile() string  { return filepath.Join(string(b), "pid") }
func (b bundle) log() string      { return filepath.Join(string(b), "log") }
func (b bundle) toolLog() string  { return filepath.Join(string(b), "runtime.log") }
func (b bundle) exitFile() string { return filepath.Join(string(b), "exit.json") }
func (b bundle) bootMark() string { return filepath.Join(string(b), "booted") }

// record is what a bundle keeps for later processes. It has no secret.
type record struct {
	Labels map[string]string `json:"labels"`
	Size   core.MemberSize   `json:"size"`
	RootFS string            `json:"rootfs"` // its directory's name
	// Blank: the sandbox was prepared, and nobody has adopted it.
	Blank bool `json:"blank,omitempty"`
	// ID is whose bundle an adopted one became. It is written before the bundle gets that
	// name: until then it is still a blank's.
	ID string `json:"id,omitempty"`
	// Container is what the runtime and the cgroups call an adopted sandbox: neither can
	// be renamed. Empty: by its ID.
	Container string `json:"container,omitempty"`
}

// blank says whether a record in the bundle of an ID is that of a blank.
func (rec record) blank(id string) bool { return rec.Blank || rec.ID != "" && rec.ID != id }

// create makes the bundle. The record is written first: from then on the sandbox is
// listed with its labels.
func (b bundle) create(rec record, config any) error {
	if err := os.MkdirAll(string(b), 0o700); err != nil {
		return err
	}
	if err := b.setRecord(rec); err != nil {
		return err
	}
	return writeJSON(filepath.Join(string(b), "config.json"), config)
}

func (b bundle) setRecord(rec record) error {
	return writeJSON(filepath.Join(string(b), "record.json"), rec)
}

// record reads what was written last; of an interrupted create, nothing.
func (b bundle) record() (rec record) {
	if readJSON(filepath.Join(string(b), "record.json"), &rec) != nil {
		return record{}
	}
	return rec
}

// pid reads the file that the runtime writes once the sandbox runs; 0 if there is none.
func (b bundle) pid() int {
	raw, err := os.ReadFile(b.pidFile())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}

// markBooted notes that the sandbox has its boot data: its start is complete.
func (b bundle) markBooted() error { return os.WriteFile(b.bootMark(), nil, 0o600) }

func (b bundle) booted() bool {
	_, err := os.Lstat(b.bootMark())
	return err == nil
}

// exit reads what the watcher learned, if it did.
func (b bundle) exit() (e sandbox.Exit, ok bool) {
	return e, readJSON(b.exitFile(), &e) == nil
}

// inUse lists the root file systems that bundles stand on.
func (r *Runtime) inUse() map[string]bool {
	used := map[string]bool{}
	ids, err := subdirectories(r.bundles())
	if err != nil {
		return used
	}
	for _, id := range ids {
		used[r.bundle(id).record().RootFS] = true
	}
	return used
}

func writeJSON(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	// Renamed into place, so that a reader sees all of it or nothing.
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

const (
	maxLog  = 4 << 20  // a log longer than this is trimmed when it is next looked at
	hardLog = 16 << 20 // where the kernel refuses to write more (RLIMIT_FSIZE)
	maxTail = 4 << 10
)

// openLog makes the file that a sandbox writes to. A pipe would end the member, by
// SIGPIPE, when the host's process ends.
func (b bundle) openLog() (*os.File, error) {
	return os.OpenFile(b.log(), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
}

// logTail returns the last lines of a log, at most maxTail bytes of them.
func (b bundle) logTail() string {
	f, err := os.Open(b.log())
	if err != nil {
		return ""
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(0, fi.Size()-maxTail)
	buf := make([]byte, min(maxTail, fi.Size()))
	n, err := f.ReadAt(buf, from)
	if n == 0 && err != nil {
		return ""
	}
	tail := string(buf[:n])
	if from > 0 {
		if _, rest, ok := strings.Cut(tail, "\n"); ok && rest != "" {
			tail = rest
		}
	}
	return strings.ToValidUTF8(tail, "?")
}

// trimLog empties a log that has grown too long. The member's descriptor appends, so it
// goes on at the start.
func trimLog(path string) error {
	fi, err := os.Stat(path)
	if errors.Is(err, unix.ENOENT) || err == nil && fi.Size() <= maxLog {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Truncate(path, 0)
}
