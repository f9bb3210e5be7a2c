package signin

import (
	"errors"
	"net"
	"syscall"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// CheckAddress refuses an address that would carry tokens in the clear. Every front
// end keeps to it.
func CheckAddress(address string, encrypted, allowInsecure bool) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return errs.New(errs.Invalid, "%q is not an address to listen on, such as 127.0.0.1:8480: %w", address, err)
	}
	ip := net.ParseIP(host)
	if encrypted || allowInsecure || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return errs.New(errs.Invalid, "%s is not a loopback address, and tokens would cross the network in the clear", address).
		WithHint("give --tls-cert and --tls-key, listen on 127.0.0.1, or give --insecure if something in front encrypts")
}

// Listen is net.Listen with an error for the user.
func Listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, ListenError(address, err)
	}
	return l, nil
}

// ListenError says why an address could not be bound, and what to do.
func ListenError(address string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return errs.New(errs.Conflict, "%s is in use: %w", address, err).
			WithHint("another sluice may be running on this machine: stop it, or choose other addresses (--http, --flight, --socket)")
	}
	return errs.New(errs.Unavailable, "listen on %s: %w", address, err)
}
