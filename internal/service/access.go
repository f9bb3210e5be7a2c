package service

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/identity"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/store"
)

// tokenPrefix makes a leaked token easy to recognise.
const tokenPrefix = "sluice_"

// FirstToken makes the administrator's token if there is none yet. It is returned
// once and stored hashed; afterwards the result is the zero Secret.
func (s *Service) FirstToken(ctx context.Context) (core.Secret, error) {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the process instead
	token := tokenPrefix + base64.RawURLEncoding.EncodeToString(raw[:])
	made := false
	err := s.opts.Store.Write(ctx, func(tx store.Tx) error {
		n, err := tx.CountTokens()
		if err != nil || n > 0 {
			return err
		}
		made = true
		return tx.PutToken(hash(token), core.Principal{Tenant: core.DefaultTenant, Name: "admin", Role: core.RoleAdmin})
	})
	if err != nil || !made {
		return core.Secret{}, err
	}
	return core.NewSecret(token), nil
}

func hash(token string) []byte {
	sum := sha256.Sum256([]byte(token)) // 256 random bits need no slow hash
	return sum[:]
}

// tokenKey is the key of the cache of tokens that were found: their hash.
type tokenKey [sha256.Size]byte

// Authenticate implements Frontend.
func (s *Service) Authenticate(ctx context.Context, token string) (core.Principal, error) {
	key := tokenKey(hash(token))
	if p, ok := s.tokens.Load(key); ok {
		return p.(core.Principal), nil
	}
	var p core.Principal
	err := s.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
		p, err = tx.FindToken(key[:])
		return err
	})
	if errs.ClassOf(err) == errs.NotFound {
		return p, errs.New(errs.Unauthenticated, "the token is not known").
			WithHint("the administrator's token was shown at the service's first start; on the service's machine the socket needs none")
	}
	if err == nil {
		s.tokens.Store(key, p)
	}
	return p, err
}

// Join decides whether a member or a host may have a first certificate.
func (s *Service) Join(ctx context.Context, req memberapi.JoinRequest) (identity.Subject, error) {
	switch req.Role {
	case memberapi.RoleMember:
		return s.joinMember(ctx, req)
	case memberapi.RoleHost:
		if req.Name == "" || !s.opts.HostToken.Matches(req.Token) {
			return identity.Subject{}, errs.New(errs.Denied, "host %q sent a token that is not this service's", req.Name).
				WithHint("copy host.token from the service's data directory")
		}
		return identity.Subject{Role: memberapi.RoleHost, Name: req.Name}, nil
	}
	return identity.Subject{}, errs.New(errs.Invalid, "role %q can't join", req.Role)
}

func (s *Service) joinMember(ctx context.Context, req memberapi.JoinRequest) (identity.Subject, error) {
	var m core.Member
	sum := hash(req.Token)
	err := s.opts.Store.Write(ctx, func(tx store.Tx) (err error) {
		m, err = tx.UseJoinHash(req.Name, hexString(sum))
		return err
	})
	if err != nil {
		if c := errs.ClassOf(err); c == errs.NotFound || c == errs.Conflict {
			s.opts.Fleet.JoinRefused(req.Name, hexString(sum))
			return identity.Subject{}, errs.New(errs.Unauthenticated, "member %s sent a token that is not known, or was used", req.Name)
		}
		return identity.Subject{}, err
	}
	return identity.Subject{Role: memberapi.RoleMember, Name: m.ID, Generation: m.Generation}, nil
}

// Authorize decides whether a certificate's subject is still expected.
func (s *Service) Authorize(_ context.Context, subj identity.Subject) error {
	if subj.Role == memberapi.RoleMember && !s.opts.Fleet.Live(subj.Name, subj.Generation) {
		return errs.New(errs.Denied, "member %s of generation %d is not expected to run", subj.Name, subj.Generation)
	}
	return nil
}
