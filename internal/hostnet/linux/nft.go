package linux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nftWait bounds one run of nft.
const nftWait = 30 * time.Second

// The messages and attributes of the kernel's nf_tables interface that are read here.
const (
	nftMsgGetTable = 1
	nftMsgGetGen   = 16
	attrTableName  = 1
	attrGenID      = 1
)

// ruleset applies nftables text in one namespace and checks what the kernel holds.
//
// nft's exit takes 10 to 30 ms after its transaction took effect, because closing its
// socket waits until the replaced table is freed. So the transaction's end is seen in
// the kernel's generation number, and the exit is waited for in the background.
type ruleset struct {
	at     *space
	socket *nl.SocketHandle
	exits  sync.WaitGroup
	astray bool // a run was not waited for: its transaction may still come
	shared bool // others program rules here too: the generation is not ours alone

	text   string    // as applied and verified
	parsed tableText // the same, taken apart
	gen    uint32    // the kernel's generation number after that
}

func newRuleset(at *space) (*ruleset, error) {
	s, err := netfilterSocket(at)
	if err != nil {
		return nil, fmt.Errorf("opening nf_tables of %s: %w", at.path, err)
	}
	return &ruleset{at: at, socket: s}, nil
}

func (r *ruleset) close() {
	r.exits.Wait()
	r.socket.Close()
}

// holds says that text is in force: nothing was changed since it was verified.
func (r *ruleset) holds(text string) bool {
	gen, err := r.generation()
	return err == nil && r.text == text && r.gen == gen
}

// apply replaces what text replaces, in one transaction, and reads back that the
// kernel holds every chain, rule and element of it.
func (r *ruleset) apply(ctx context.Context, text string) error {
	if r.astray {
		r.exits.Wait()
		r.astray = false
	}
	goal := parseText(text)
	var c change
	small := false
	if r.text != "" && r.holds(r.text) {
		c, small = delta(r.parsed, goal)
	}
	r.text = ""
	var err error
	if small {
		if err = r.transact(ctx, c.text, r.shared); err == nil {
			err = r.verify(goal, c.touched)
		}
	}
	if !small || err != nil && ctx.Err() == nil { // a replacement puts right what a change could not
		if err = r.transact(ctx, text, r.shared); err == nil {
			err = r.verify(goal, nil)
		}
	}
	if err != nil {
		return err
	}
	gen, err := r.generation()
	if err == nil {
		r.text, r.parsed, r.gen = text, goal, gen
	}
	return err
}

// transact carries out one transaction of nft. Its exit says more than the generation
// does, but comes only when the kernel has freed what is gone.
func (r *ruleset) transact(ctx context.Context, text string, untilExit bool) error {
	before, err := r.generation()
	if err != nil {
		return err
	}
	exited, err := r.run(ctx, text)
	if err != nil {
		return err
	}
	return r.await(ctx, exited, func() bool {
		gen, err := r.generation()
		return !untilExit && (err != nil || gen != before)
	})
}

// run starts nft in the namespace; a child inherits that of the thread that makes it.
func (r *ruleset) run(ctx context.Context, text string) (<-chan error, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), nftWait)
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is not meant for it
	if err := r.at.do(cmd.Start); err != nil {
		cancel()
		return nil, fmt.Errorf("starting nft: %w", err)
	}
	exited := make(chan error, 1)
	r.exits.Go(func() {
		defer cancel()
		if err := cmd.Wait(); err != nil {
			exited <- fmt.Errorf("nft refused the rules: %w: %s", err, firstLines(said.String(), 3))
		}
		close(exited)
	})
	return exited, nil
}

// await returns when nft ended, or when done says that its work is.
func (r *ruleset) await(ctx context.Context, exited <-chan error, done func() bool) error {
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		select {
		case err := <-exited:
			return err
		case <-ctx.Done():
			r.astray = true
			return ctx.Err()
		case <-tick.C:
			if done() {
				return nil
			}
		}
	}
}

// generation is a number that grows with each transaction in the namespace.
func (r *ruleset) generation() (uint32, error) {
	msgs, err := r.ask(nftMsgGetGen, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the nf_tables generation: %w", err)
	}
	for _, m := range msgs {
		if v, ok := attribute(m, attrGenID); ok && len(v) == 4 {
			return binary.BigEndian.Uint32(v), nil
		}
	}
	return 0, errors.New("the kernel gave no nf_tables generation")
}

// tables lists the names of the namespace's tables.
func (r *ruleset) tables() ([]string, error) {
	msgs, err := r.ask(nftMsgGetTable, unix.NLM_F_DUMP)
	var out []string
	for _, m := range msgs {
		if v, ok := attribute(m, attrTableName); ok {
			out = append(out, string(bytes.TrimRight(v, "\x00")))
		}
	}
	return out, err
}

func (r *ruleset) ask(msg, flags int) ([][]byte, error) { return r.askOf(unix.AF_UNSPEC, msg, flags) }

func (r *ruleset) askOf(family uint8, msg, flags int, attrs ...*nl.RtAttr) ([][]byte, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|msg, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: r.socket}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family})
	for _, a := range attrs {
		req.AddData(a)
	}
	return req.Execute(unix.NETLINK_NETFILTER, 0)
}

// attribute finds a top-level attribute behind a message's nfgenmsg.
func attribute(msg []byte, kind uint16) ([]byte, bool) {
	if len(msg) < nl.SizeofNfgenmsg {
		return nil, false
	}
	attrs, err := nl.ParseRouteAttr(msg[nl.SizeofNfgenmsg:])
	if err != nil {
		return nil, false
	}
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK == kind {
			return a.Value, true
		}
	}
	return nil, false
}

func firstLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[:min(n, len(lines))], "; ")
}
