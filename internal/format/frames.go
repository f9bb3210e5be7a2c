package format

import (
	"errors"
	"io"

	"github.com/sluice-gateway/sluice/internal/arrowipc"
)

// errBeyondEnd says that bytes followed the end-of-stream marker.
var errBeyondEnd = errors.New("the result goes on after its end-of-stream marker")

// watched remembers the first error of a reader as it was. Decoders wrap, replace or,
// where it wraps io.EOF, swallow it.
type watched struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.r.Read(p)
	w.err = err
	if err != nil && n > 0 {
		err = nil
	}
	return n, err
}

// failure is the reader's own error, nil if it has not failed.
func (w *watched) failure() error {
	if w.err == nil || w.err == io.EOF {
		return nil
	}
	return w.err
}

// expectEnd returns nil if the reader has ended, and ended well.
func (w *watched) expectEnd() error {
	var one [1]byte
	for w.err == nil {
		if n, _ := w.Read(one[:]); n > 0 {
			return errBeyondEnd
		}
	}
	return w.failure()
}

// Frames reads a result frame by frame. Other than an arrowipc.Reader, it takes the
// end of the stream for an end only once the reader below has ended well, too.
type Frames struct {
	src *watched
	ipc *arrowipc.Reader
}

// NewFrames returns the frames of r.
func NewFrames(r io.Reader, opts arrowipc.Options) *Frames {
	src := &watched{r: r}
	return &Frames{src: src, ipc: arrowipc.NewReader(src, opts)}
}

// Next returns the next frame, or io.EOF if and only if the result is whole. Where
// r failed, the error is r's own.
func (f *Frames) Next() (arrowipc.Frame, error) {
	frame, err := f.ipc.Next()
	switch {
	case err == nil:
		return frame, nil
	case f.src.failure() != nil:
		return arrowipc.Frame{}, f.src.failure()
	case err != io.EOF:
		return arrowipc.Frame{}, err
	}
	if err := f.src.expectEnd(); err != nil {
		return arrowipc.Frame{}, err
	}
	return arrowipc.Frame{}, io.EOF
}

// Arrow passes a stream on as it is, frame by frame, with the end-of-stream marker
// only after the whole.
func Arrow(w io.Writer, r io.Reader) (rows int64, err error) {
	frames := NewFrames(r, arrowipc.Options{Pool: &arrowipc.Pool{}})
	for {
		frame, err := frames.Next()
		if err == io.EOF {
			return rows, arrowipc.WriteEOS(w)
		}
		if err != nil {
			return rows, err
		}
		err = arrowipc.WriteFrame(w, frame)
		frame.Release()
		if err == nil && frame.Kind != arrowipc.Schema {
			err = flush(w)
		}
		if err != nil {
			return rows, err
		}
		rows += frame.Rows
	}
}
