package vm

import (
	"bytes"
	"fmt"
)

// archive is an initial file system, in the format that the kernel unpacks: cpio, "newc".
type archive struct {
	buf   bytes.Buffer
	inode int
}

const (
	modeDir     = 0o040755
	modeFile    = 0o100755
	modeConsole = 0o020600
)

func (a *archive) dir(name string)               { a.add(name, modeDir, 0, 0, nil) }
func (a *archive) file(name string, text []byte) { a.add(name, modeFile, 0, 0, text) }

// console is what the first program's messages go to.
func (a *archive) console() { a.add("/dev/console", modeConsole, 5, 1, nil) }

func (a *archive) add(name string, mode, major, minor int, text []byte) {
	a.inode++
	name = name[1:] + "\x00"
	links, owner, modified, check := 1, 0, 0, 0
	a.buf.WriteString("070701")
	for _, n := range []int{a.inode, mode, owner, owner, links, modified, len(text), 0, 0, major, minor, len(name), check} {
		fmt.Fprintf(&a.buf, "%08x", n)
	}
	a.buf.WriteString(name)
	a.align()
	a.buf.Write(text)
	a.align()
}

func (a *archive) align() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *archive) end() []byte {
	a.add("/TRAILER!!!", 0, 0, 0, nil)
	return a.buf.Bytes()
}
