package httpapi

import (
	"context"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

// peer is who is at the other end of a Unix socket, as the kernel says.
type peer struct {
	uid   uint32
	owner uint32 // of the socket
	err   error
}

type peerKey struct{}

func peerFrom(ctx context.Context) (peer, bool) {
	p, ok := ctx.Value(peerKey{}).(peer)
	return p, ok
}

// connContext notes the peer of each connection that comes through the socket.
func connContext(ctx context.Context, conn net.Conn) context.Context {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, peerOf(unix))
}

// peerOf asks the kernel. The socket's owner is read each time: an administrator may
// give the socket away while the service runs.
func peerOf(conn *net.UnixConn) peer {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{err: err}
	}
	var p peer
	if ctlErr := raw.Control(func(fd uintptr) {
		cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		if err != nil {
			p.err = err
			return
		}
		p.uid = cred.Uid
	}); ctlErr != nil {
		return peer{err: ctlErr}
	}
	info, err := os.Stat(conn.LocalAddr().String())
	if err != nil {
		return peer{err: err}
	}
	p.owner = info.Sys().(*syscall.Stat_t).Uid
	return p
}

// principal is the administrator for the socket's owner and for root, an error for
// everyone else.
func (p peer) principal() (core.Principal, error) {
	if p.err != nil {
		return core.Principal{}, errs.New(errs.Internal, "who speaks through the socket can't be told: %w", p.err).WithStep(errs.StepAdmit)
	}
	if p.uid != 0 && p.uid != p.owner {
		return core.Principal{}, errs.New(errs.Denied, "user %s is not the owner of the service's socket", userName(p.uid)).
			WithStep(errs.StepAdmit).WithHint("run as %s, or use SLUICE_URL with a token", ownerOrRoot(p.owner))
	}
	return core.Principal{Tenant: core.DefaultTenant, Name: userName(p.uid), Role: core.RoleAdmin}, nil
}

// ownerOrRoot names those who may use the socket.
func ownerOrRoot(owner uint32) string {
	if owner == 0 {
		return userName(owner)
	}
	return userName(owner) + " or root"
}

// userName is what the query log shows.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}
