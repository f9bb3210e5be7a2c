package stack

import (
	"crypto/sha256"
	"encoding/hex"
)

// Instance derives an installation's name in the kernel from its run directory. It is
// written again here, so that a change of the names is noticed.
func Instance(runDir string) string {
	sum := sha256.Sum256([]byte(runDir))
	return hex.EncodeToString(sum[:3])
}
