package splice

import (
	"fmt"
	"net"
	"time"
)

// keepAlive notices a silent peer of an idle connection after 25 s.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}

// KeepAlive makes the kernel probe an idle connection, so that a peer which vanished
// without a word is noticed. It sets no TCP_USER_TIMEOUT: that would also end a
// connection whose living peer stops reading for that long, which is back-pressure.
func KeepAlive(c interface {
	SetKeepAliveConfig(net.KeepAliveConfig) error
}) error {
	if err := c.SetKeepAliveConfig(keepAlive); err != nil {
		return fmt.Errorf("set keepalive: %w", err)
	}
	return nil
}
