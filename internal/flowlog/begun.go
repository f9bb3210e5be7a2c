package flowlog

import (
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// share is the part of a CPU that reading all flows because of beginnings, and writing
// them down, may take: one in so many.
const share = 50

// begun knows whether a flow began that no log has yet. The kernel tells of the first one
// alone: until the flows were read, the socket is not in the group of beginnings, so that
// none of the others costs a message.
type begun struct {
	some bool      // since the flows were last read
	next time.Time // no reading before it
}

// worthALook says that flows began, and that reading all of them is not too much.
func (b *begun) worthALook() bool { return b.some && !time.Now().Before(b.next) }

// watch is for the moment before the flows are read.
func (b *begun) watch(s *socket) error {
	b.some = false
	return s.follow(true)
}

// spent is for the moment after they were written; reading began at start.
func (b *begun) spent(start time.Time) {
	now := time.Now()
	b.next = now.Add(share * now.Sub(start))
}

// beginning takes the message that a flow began.
func (l *Log) beginning(m syscall.NetlinkMessage) {
	if m.Header.Type != unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_NEW || len(m.Data) < nl.SizeofNfgenmsg {
		return
	}
	if c, ok := parseConn(m.Data[nl.SizeofNfgenmsg:]); ok && c.mark != 0 {
		l.noteBeginning()
	}
}

// began takes that messages of beginnings found no room.
func (l *Log) began() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteBeginning()
}

// noteBeginning leaves the group, which fails on a closed socket alone.
func (l *Log) noteBeginning() {
	l.begun.some = true
	_ = l.begins.follow(false)
}
