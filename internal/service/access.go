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
	token := newToken()
	made := false
	err := s.opts.Store.Write(ctx, func(tx store.Tx) error {
		n, err := tx.CountTokens()
		if err != nil || n > 0 {
			return err
		}
		made = true
		return tx.PutToken(hash(token), administrator(core.DefaultTenant))
	})
	if err != nil || !made {
		return core.Secret{}, err
	}
	return core.NewSecret(token), nil
}

// caller is who asks, and may. The one role that there is may do everything in its tenant;
// every method of Frontend asks here, so that no front end has to.
func caller(ctx context.Context) (core.Principal, error) {
	p, err := core.PrincipalFrom(ctx)
	if err != nil {
		return p, errs.New(errs.Unauthenticated, "%w", err).WithStep(errs.StepAdmit)
	}
	if p.Role != core.RoleAdmin {
		return core.Principal{}, errs.New(errs.Denied, "%s has the role %q, and only that of %q may do this", p.Name, p.Role, core.RoleAdmin).WithStep(errs.StepAdmit)
	}
	return p, nil
}

// RenewToken implements Frontend.
func (s *Service) RenewToken(ctx context.Context) (core.Secret, error) {
	p, err := caller(ctx)
	if err != nil {
		return core.Secret{}, err
	}
	token := newToken()
	err = s.opts.Store.Write(ctx, func(tx store.Tx) error {
		if err := tx.ReplaceTokens(hash(token), administrator(p.Tenant)); err != nil {
			return err
		}
		return s.audit(tx, p, "renew", "Token/"+administrator(p.Tenant).Name, "the one before it is no longer known", "")
	})
	if err != nil {
		return core.Secret{}, err
	}
	s.renewals.Add(1)
	s.tokens.Clear()
	return core.NewSecret(token), nil
}

func administrator(t core.TenantID) core.Principal {
	return core.Principal{Tenant: t, Name: "admin", Role: core.RoleAdmin}
}

func newToken() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the process instead
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(raw[:])
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
	renewals := s.renewals.Load()
	err := s.opts.Store.Read(ctx, func(tx store.Tx) (err error) {
		p, err = tx.FindToken(key[:])
		return err
	})
	if errs.ClassOf(err) == errs.NotFound {
		return p, errs.New(errs.Unauthenticated, "the token is not known").
			WithHint("the administrator's token was shown at the service's first start; on the service's machine the socket needs none, and \"sluice token renew\" makes a new one")
	}
	if err == nil {
		s.tokens.Store(key, p)
		if s.renewals.Load() != renewals {
			s.tokens.Delete(key) // it may be the one that was just replaced
		}
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
