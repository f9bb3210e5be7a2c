// Package ident makes identifiers: short, unique, in order of time, and safe in the
// name of a file, a namespace or a container. Any package may import it.
package ident

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"strings"
	"time"
)

var encoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// New returns prefix, a dash and 20 characters: 48 bits of milliseconds, then 52
// random bits at least.
func New(prefix string) string {
	var raw [13]byte
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(time.Now().UnixMilli()))
	copy(raw[:6], ms[2:])
	_, _ = rand.Read(raw[6:]) // never fails: crypto/rand ends the process instead
	return prefix + "-" + strings.ToLower(encoding.EncodeToString(raw[:]))[:20]
}
