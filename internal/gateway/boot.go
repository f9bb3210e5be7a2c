package gateway

import (
	"encoding/json"
	"io"
	"math"
	"runtime"
	"runtime/debug"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// maxBoot bounds the boot document.
const maxBoot = 1 << 20

// ReadBoot reads what the host hands to a member at its start. No error quotes the
// document, which holds a secret.
func ReadBoot(r io.Reader) (memberapi.Boot, error) {
	var boot memberapi.Boot
	doc, err := io.ReadAll(io.LimitReader(r, maxBoot+1))
	if err != nil {
		return boot, errs.New(errs.Invalid, "the boot document can't be read: %w", err).
			WithHint("sluice-gateway is started by a host, with the document on file descriptor 3")
	}
	if len(doc) > maxBoot {
		return boot, errs.New(errs.Invalid, "the boot document is larger than %d bytes", maxBoot)
	}
	if err := json.Unmarshal(doc, &boot); err != nil {
		return memberapi.Boot{}, errs.New(errs.Invalid, "the boot document of %d bytes is not the JSON that a host writes", len(doc))
	}
	for _, f := range []struct{ name, value string }{
		{"member", boot.Member}, {"relay", boot.Relay}, {"serviceCa", boot.ServiceCA}, {"joinToken", boot.JoinToken},
	} {
		if f.value == "" {
			return memberapi.Boot{}, errs.New(errs.Invalid, "the boot document lacks %q", f.name)
		}
	}
	return boot, nil
}

// UseLimits fits the Go runtime to the size that the boot document names. A member that
// was started before its size was known began with less.
func UseLimits(boot memberapi.Boot) {
	if boot.CPUs > 0 {
		runtime.GOMAXPROCS(int(math.Ceil(boot.CPUs)))
	}
	if boot.MemoryMiB > 0 {
		debug.SetMemoryLimit(boot.MemoryMiB << 20 / 10 * 8) // the rest is for what the runtime does not count
	}
}
