package splice

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// pendingError returns, and clears, the error that a socket holds.
func pendingError(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return syscall.Errno(code)
	}
	return nil
}
