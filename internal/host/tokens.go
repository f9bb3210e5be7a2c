package host

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/hostnet"
)

// issueTokens makes the join tokens of members that are about to be started, so that the
// service stores their hashes while the network is made. It is the only one to tell the
// service of them before there is anything of the member.
func (h *Host) issueTokens(want map[string]core.GoalMember) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.tokens {
		if _, ok := want[id]; !ok {
			delete(h.tokens, id)
		}
	}
	if !h.known {
		return // they might be running already
	}
	for id, m := range want {
		if h.boxes[id] == nil && h.tokens[id] == nil {
			h.tokens[id] = &joinToken{member: hostnet.PortKey{Member: m.ID, Generation: m.Generation}, secret: newToken()}
			poke(h.say)
		}
	}
}

// joinToken is the token of a member that has no sandbox yet.
type joinToken struct {
	member hostnet.PortKey
	secret string
}

// observeTokens adds to a report the hashes of tokens that were issued. The caller holds mu.
func (h *Host) observeTokens(r *core.HostReport) {
	at := map[string]int{}
	for i, o := range r.Members {
		at[sandboxID(o.ID, o.Generation)] = i
	}
	for id, t := range h.tokens {
		if i, ok := at[id]; ok {
			r.Members[i].JoinTokenHash = hashToken(t.secret)
			continue
		}
		r.Members = append(r.Members, core.ObservedMember{ID: t.member.Member, Generation: t.member.Generation, JoinTokenHash: hashToken(t.secret)})
	}
}

// newToken returns a one-time join token of 256 random bits.
func newToken() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the process instead
	return base64.RawURLEncoding.EncodeToString(raw[:])
}

func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}
