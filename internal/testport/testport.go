// Package testport chooses TCP ports for programs that tests start, stop and start again.
//
// A port that the kernel chose is one of those that it gives to connections, too: while the
// program is away, anybody's connection may come from it, even the one that was meant for the
// program, and then the program can't listen. These ports lie below. Tests and benchmarks
// alone may use it.
package testport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

// The lowest port that is given, and the fewest that there must be to choose from.
const (
	lowest = 10_000
	fewest = 5_000
)

var given = struct {
	sync.Mutex
	ports map[int]bool
}{ports: map[int]bool{}}

// Free returns a port on which nobody listens on 127.0.0.1 now, and which this process was not given yet.
func Free() (int, error) {
	given.Lock()
	defer given.Unlock()
	ports := connectionsFrom() - lowest
	if ports < fewest {
		return listen(0)
	}
	for range 1000 {
		port := lowest + rand.IntN(ports)
		if given.ports[port] {
			continue
		}
		if _, err := listen(port); err == nil {
			given.ports[port] = true
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free TCP port of 127.0.0.1 from %d to %d: too many programs listen there", lowest, lowest+ports-1)
}

// connectionsFrom is the lowest port that the kernel gives to connections.
func connectionsFrom() (first int) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0
	}
	if _, err := fmt.Sscan(string(text), &first); err != nil {
		return 0
	}
	return first
}

// listen looks whether a port is free, any one if it is 0, and returns which it was.
func listen(port int) (int, error) {
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
