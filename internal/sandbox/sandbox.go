// Package sandbox is the contract of whatever runs members: an OCI runtime, or a
// fake in tests.
//
// It holds types only. oci/ drives an OCI runtime such as runc; fake/ runs nothing;
// sandboxtest/ is the suite that every implementation must pass. The host package
// is its only caller.
package sandbox

import (
	"context"

	"github.com/sluice-gateway/sluice/internal/core"
)

// Spec describes one sandbox. ID derives from member and generation.
type Spec struct {
	ID     string
	Labels map[string]string // kept with the sandbox and returned by List: member, generation, gateway
	// NetNS is the path of the network namespace to start in.
	NetNS string
	Size  core.MemberSize // resolved: no zero fields
	// Boot is handed to the process as file descriptor 3 and never touches a disk.
	Boot []byte
}

// State is what is known of one sandbox.
type State struct {
	ID      string
	Labels  map[string]string
	Running bool
	Image   string // what it was started from, as Imager names it; "" if that is not known
	PID     int
	Exit    Exit // meaningful when not Running
	// Blank says that it was prepared and has not become anybody's; it has no labels. Only
	// the process that prepared it can adopt it.
	Blank bool
}

// Imager is an optional ability of a Runtime: to say what the next sandbox would be
// started from, so that those that were started from something else can be told.
type Imager interface {
	// Image names the program by its content, in a few characters. It looks each time, and is
	// cheap as long as nothing has changed.
	Image() (string, error)
}

// Exit tells how a sandbox ended.
type Exit struct {
	OutOfMemory bool
	Code        int    // exit status, -1 if it could not be learned
	Reason      string // one line for people: "out of memory: the limit is 8192 MiB"
	LogTail     string // the last lines that it wrote, at most 4 KiB
}

// Usage is what one sandbox uses.
type Usage struct {
	MemoryBytes     int64
	PeakMemoryBytes int64
	CPUSeconds      float64
}

// Runtime runs sandboxes. Its methods may be called concurrently, for one ID one at
// a time.
type Runtime interface {
	// Start makes and starts a sandbox and returns when its process runs. Starting an
	// ID that runs already is not an error and does nothing.
	Start(ctx context.Context, spec Spec) error
	// Stop ends a sandbox (SIGTERM, then SIGKILL after the runtime's grace) and removes
	// everything of it. An ID that does not exist is not an error.
	Stop(ctx context.Context, id string) error
	// List returns every sandbox of this installation, running or ended, whichever
	// process started it.
	List(ctx context.Context) ([]State, error)
	// Exits sends the ID of each sandbox that ends by itself. Sandboxes started by an
	// earlier process are watched from Start of this one, once List has seen them.
	Exits() <-chan string
	// Usage reads the counters of a running sandbox.
	Usage(ctx context.Context, id string) (Usage, error)
	// Close ends watching; sandboxes go on running.
	Close() error
	// CleanUp removes every sandbox and every file of this installation.
	CleanUp(ctx context.Context) error
}

// Preparer is an optional ability of a Runtime: to start sandboxes before it is known
// whose they will be, since starting takes long and all that a member is told it reads
// from its boot data.
type Preparer interface {
	// Prepare starts a blank sandbox in a network namespace and returns when its process
	// waits for boot data. It has small limits and neither labels, nor an identity, nor a
	// secret. When the process that prepared it ends, however it does, the blank ends too,
	// and is listed until a later process stops it. Stop and Exits treat it like any other.
	Prepare(ctx context.Context, id, netns string) error
	// Adopt makes a blank into the sandbox that spec describes, as if Start had started it:
	// from then on it is spec.ID's, and its own ID means nothing. Spec.NetNS must be the
	// namespace of the blank, by whatever name. Whatever else exists under spec.ID goes
	// first. If it fails, neither exists any more.
	Adopt(ctx context.Context, blank string, spec Spec) error
}
