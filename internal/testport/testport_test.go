package testport

import (
	"fmt"
	"net"
	"testing"
)

func TestPortsAreFreeAndNoConnections(t *testing.T) {
	t.Parallel()
	seen, first := map[int]bool{}, connectionsFrom()
	for range 200 {
		port, err := Free()
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] {
			t.Errorf("port %d was given twice", port)
		}
		seen[port] = true
		if first-lowest >= fewest && (port < lowest || port >= first) {
			t.Errorf("port %d; want one from %d to %d", port, lowest, first-1)
		}
	}
}

func TestAPortInUseIsNotGiven(t *testing.T) {
	t.Parallel()
	port, err := Free()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := listen(port); err == nil {
		t.Errorf("port %d, on which this test listens, is taken for free", port)
	}
}
