package gateway

import (
	"encoding/json"
	"io"

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
