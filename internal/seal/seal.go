// Package seal encrypts credentials before they are stored and decrypts them for the
// member that needs them.
//
// It owns the key file and the form of what is sealed; the cryptography is Tink's. A
// sealed value is bound to its context (tenant, owner, field), so that a row copied to
// another place does not open there. The service is its only caller; hosts, members
// and the CLI never see a key.
package seal

import (
	"encoding/binary"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// Sealer seals and opens with the keys of one key file. It is safe for concurrent use.
type Sealer struct {
	path string
	aead tink.AEAD
}

func newSealer(path string, keys *keyset.Handle) (*Sealer, error) {
	a, err := aead.New(keys)
	if err != nil {
		return nil, errs.New(errs.Internal, "the key file %s can't be used: %w", path, err)
	}
	return &Sealer{path: path, aead: a}, nil
}

// Seal encrypts plaintext for the place that context names, in the words and the order
// that Open will be given.
func (s *Sealer) Seal(plaintext core.Secret, context ...string) ([]byte, error) {
	sealed, err := s.aead.Encrypt([]byte(plaintext.Reveal()), associated(context))
	if err != nil {
		return nil, errs.New(errs.Internal, "seal a secret: %w", err)
	}
	return sealed, nil
}

// Open decrypts what Seal made for the same context.
func (s *Sealer) Open(sealed []byte, context ...string) (core.Secret, error) {
	plaintext, err := s.aead.Decrypt(sealed, associated(context))
	if err != nil {
		return core.Secret{}, errs.New(errs.Internal, "a stored secret can't be opened with the key file %s: it was sealed with another key or for another place, or was changed", s.path).
			WithHint("restore the key file that belongs to this data directory, or apply the data source again with its password")
	}
	return core.NewSecret(string(plaintext)), nil
}

// associated joins the words of a context so that no other words give the same bytes.
func associated(context []string) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(context)))
	for _, word := range context {
		out = binary.BigEndian.AppendUint32(out, uint32(len(word)))
		out = append(out, word...)
	}
	return out
}
