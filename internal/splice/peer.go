package splice

import "golang.org/x/sys/unix"

// peer is a host as the splicer sees it.
type peer struct {
	s     *server
	fd    int
	at    int32
	queue [][]byte // what its socket did not take yet
	full  bool     // it waits for its socket to take more
	gone  bool
}

// maxQueue ends the connection of a host that does not read.
const maxQueue = 1 << 16

// ready implements watcher.
func (h *peer) ready(events uint32) {
	if events&unix.EPOLLOUT != 0 {
		h.flush()
	}
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		h.read()
	}
}

// read takes every message that is there.
func (h *peer) read() {
	var doc [maxMessage]byte
	control := make([]byte, unix.CmsgSpace(2*4))
	for !h.gone && !h.s.l.quit {
		n, c, _, _, err := unix.Recvmsg(h.fd, doc[:], control, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return
		}
		if err != nil || n == 0 {
			h.leave()
			return
		}
		m, fds, err := decode(doc[:n], control[:c])
		if err != nil {
			h.s.opts.Logger.Error("a host's message can't be read", "error", err)
			h.leave()
			return
		}
		h.s.do(h, m, fds)
	}
}

// tell lists the pairs.
func (h *peer) tell(id uint64) {
	for _, p := range h.s.pairs {
		h.say(message{Op: opOpen, ID: p.id, Label: p.label, AToB: p.flows[0].moved, BToA: p.flows[1].moved})
	}
	h.say(message{Op: opAll, ID: id})
}

func (h *peer) say(m message) {
	if h.gone {
		return
	}
	if h.queue = append(h.queue, m.encode()); len(h.queue) > maxQueue {
		h.leave()
		return
	}
	h.flush()
}

func (h *peer) flush() {
	for len(h.queue) > 0 && !h.gone {
		err := unix.Sendto(h.fd, h.queue[0], unix.MSG_NOSIGNAL, nil)
		switch err {
		case nil:
			h.queue = h.queue[1:]
		case unix.EINTR:
		case unix.EAGAIN:
			h.await(true)
			return
		default:
			h.leave()
			return
		}
	}
	h.await(false)
}

// await tells the kernel whether to say when the socket takes more.
func (h *peer) await(full bool) {
	if h.gone || h.full == full {
		return
	}
	h.full = full
	events := uint32(unix.EPOLLIN)
	if full {
		events |= unix.EPOLLOUT
	}
	_ = h.s.l.change(h.fd, h.at, events) // it can't fail for a descriptor that is in the set
}

func (h *peer) leave() {
	if h.gone {
		return
	}
	h.gone = true
	h.s.l.forget(h.fd, h.at)
	_ = unix.Close(h.fd)
	delete(h.s.hosts, h)
	h.s.idle()
}
