package splice

import "golang.org/x/sys/unix"

const (
	// pipeSize is what one step moves at the most.
	pipeSize = 256 << 10
	// sparePipes is how many pipes wait for the next bytes: a flow holds one only while
	// bytes are in it.
	sparePipes = 16
)

// pipe is the kernel's buffer between two sockets.
type pipe struct {
	r, w int
	size int
}

// pipes lends out empty pipes.
type pipes struct{ spare []*pipe }

func (p *pipes) take() (*pipe, error) {
	if n := len(p.spare); n > 0 {
		q := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return q, nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	q := &pipe{r: fds[0], w: fds[1], size: pipeSize}
	// A user over the kernel's limit of pipe memory gets smaller ones, which work as well.
	if _, err := unix.FcntlInt(uintptr(q.w), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		if q.size, err = unix.FcntlInt(uintptr(q.w), unix.F_GETPIPE_SZ, 0); err != nil {
			q.close()
			return nil, err
		}
	}
	return q, nil
}

// put takes back a pipe. One with bytes in it can't be used again.
func (p *pipes) put(q *pipe, empty bool) {
	if !empty || len(p.spare) >= sparePipes {
		q.close()
		return
	}
	p.spare = append(p.spare, q)
}

func (p *pipes) close() {
	for _, q := range p.spare {
		q.close()
	}
	p.spare = nil
}

func (q *pipe) close() {
	_ = unix.Close(q.r)
	_ = unix.Close(q.w)
}
