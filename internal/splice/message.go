package splice

import (
	"encoding/json"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// What host and splicer say to each other, one JSON document per datagram of a
// SOCK_SEQPACKET Unix socket.
const (
	opHello = "hello" // splicer: first on each connection; Version, Process
	opOpen  = "open"  // splicer: a pair that there is; ID, Label, AToB, BToA
	opAll   = "all"   // splicer: after the last opOpen; ID is the list's
	opEnded = "ended" // splicer: a pair is over; ID, AToB, BToA, Errno

	opJoin  = "join"  // host: with two descriptors; ID, Label
	opBreak = "break" // host: reset a pair; ID
	opClear = "clear" // host: reset all pairs whose label begins with Label
	opList  = "list"  // host: asks for opOpen and opAll; ID
	opQuit  = "quit"  // host: reset everything and end
	opLeave = "leave" // host: take no new pairs, and end with the last one
)

// message is any of them.
type message struct {
	Op      string        `json:"op"`
	ID      uint64        `json:"id,omitempty"`
	Label   string        `json:"label,omitempty"`
	Version string        `json:"version,omitempty"`
	Process int           `json:"process,omitempty"`
	AToB    int64         `json:"aToB,omitempty"`
	BToA    int64         `json:"bToA,omitempty"`
	Errno   syscall.Errno `json:"errno,omitempty"`
}

// maxMessage bounds a datagram, maxLabel what of it may be a label.
const (
	maxMessage = 4 << 10
	maxLabel   = 1 << 10
)

// encode never fails: a message has only numbers and strings.
func (m message) encode() []byte {
	doc, _ := json.Marshal(m)
	return doc
}

// decode reads a datagram and the descriptors that came with it. On an error the
// descriptors are closed.
func decode(doc, control []byte) (m message, fds []int, err error) {
	if fds, err = descriptors(control); err != nil {
		return m, nil, err
	}
	if err := json.Unmarshal(doc, &m); err != nil {
		closeAll(fds)
		return m, nil, fmt.Errorf("not a message: %w", err)
	}
	return m, fds, nil
}

func descriptors(control []byte) (fds []int, err error) {
	if len(control) == 0 {
		return nil, nil
	}
	parts, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		if part.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		more, err := unix.ParseUnixRights(&part)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
