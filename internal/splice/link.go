package splice

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// link is a host's connection to one splicer. s.mu guards its maps.
type link struct {
	s     *Splicer
	conn  *net.UnixConn
	pid   int
	pairs map[uint64]*Pair
	asked map[uint64]*question
}

// question is a list of pairs that was asked for.
type question struct {
	pairs []Info
	done  chan struct{}
}

// send sends a message with the descriptors of two connections.
func (k *link) send(m message, a, b *net.TCPConn) error {
	rawA, err := a.SyscallConn()
	if err != nil {
		return err
	}
	rawB, err := b.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = rawA.Control(func(fdA uintptr) {
		err := rawB.Control(func(fdB uintptr) {
			_ = k.conn.SetWriteDeadline(time.Now().Add(talkTime))
			_, _, sent = k.conn.WriteMsgUnix(m.encode(), unix.UnixRights(int(fdA), int(fdB)), nil)
		})
		if sent == nil {
			sent = err
		}
	})
	if err == nil {
		err = sent
	}
	if err != nil {
		return fmt.Errorf("hand two connections over: %w", err)
	}
	return nil
}

// tell sends a message. A splicer that does not take it is ending, which the reader notices.
func (k *link) tell(m message) {
	_ = k.conn.SetWriteDeadline(time.Now().Add(talkTime))
	_, _ = k.conn.Write(m.encode())
}

// ask asks for the list of pairs. s.mu is held.
func (k *link) ask(id uint64) *question {
	q := &question{done: make(chan struct{})}
	k.asked[id] = q
	k.tell(message{Op: opList, ID: id})
	return q
}

// greet reads what a splicer says first: who it is and which pairs it has. s.mu is held.
func (k *link) greet() (version string, err error) {
	_ = k.conn.SetReadDeadline(time.Now().Add(talkTime))
	buf := make([]byte, maxMessage)
	for {
		m, err := k.receive(buf)
		if err != nil {
			return "", err
		}
		switch m.Op {
		case opHello:
			version, k.pid = m.Version, m.Process
		case opOpen:
			k.pairs[m.ID] = &Pair{Label: m.Label, id: m.ID, link: k, done: make(chan struct{})}
		case opEnded:
			delete(k.pairs, m.ID)
		case opAll:
			return version, k.conn.SetReadDeadline(time.Time{})
		}
	}
}

func (k *link) receive(buf []byte) (message, error) {
	n, err := k.conn.Read(buf)
	if err != nil {
		return message{}, err
	}
	m, _, err := decode(buf[:n], nil)
	return m, err
}

// read handles what the splicer says until its end, which ends its pairs.
func (k *link) read() {
	defer func() { _ = k.conn.Close() }()
	buf := make([]byte, maxMessage)
	var list []Info
	for {
		m, err := k.receive(buf)
		if err != nil {
			k.lost()
			return
		}
		switch m.Op {
		case opEnded:
			k.ended(m)
		case opOpen:
			list = append(list, Info{m.Label, m.AToB, m.BToA})
		case opAll:
			k.answered(m.ID, list)
			list = nil
		}
	}
}

func (k *link) ended(m message) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	p := k.pairs[m.ID]
	if p == nil {
		return
	}
	delete(k.pairs, m.ID)
	p.aToB, p.bToA = m.AToB, m.BToA
	if m.Errno != 0 {
		p.err = m.Errno
	}
	close(p.done)
}

func (k *link) answered(id uint64, list []Info) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if q := k.asked[id]; q != nil {
		delete(k.asked, id)
		q.pairs = list
		close(q.done)
	}
}

// lost ends every pair of a splicer that is gone, or that the host lets go of.
func (k *link) lost() {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	delete(k.s.links, k)
	if k.s.current == k {
		k.s.current = nil
	}
	if !k.s.closed && len(k.pairs) > 0 {
		k.s.opts.Logger.Error("the process that joins connections ended", "pairs", len(k.pairs))
	}
	for id, p := range k.pairs {
		delete(k.pairs, id)
		p.err = ErrLost
		close(p.done)
	}
	for id, q := range k.asked {
		delete(k.asked, id)
		close(q.done)
	}
}
