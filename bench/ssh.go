package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// sshTunnel is a reverse tunnel as people make them today: a server in the cloud that
// the private side signs in to with "ssh -R", and a port there that leads back.
type sshTunnel struct {
	port  int // on the cloud's side
	dir   string
	procs []*exec.Cmd
}

// sshUser runs both sides: as an ordinary user, sshd needs nothing of the machine's own.
const sshUser = "postgres"

// startSSH makes the tunnel to a local port.
func startSSH(ctx context.Context, target int) (_ *sshTunnel, err error) {
	s := &sshTunnel{}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	u, err := user.Lookup(sshUser)
	if err != nil {
		return nil, err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if s.dir, err = os.MkdirTemp("", "sluice-bench-ssh-"); err != nil {
		return nil, err
	}
	if err := s.keys(uid, gid); err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	daemon := ports[0]
	s.port = ports[1]
	cred := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if err := s.start(cred, "/usr/sbin/sshd", s.daemonArgs(daemon)...); err != nil {
		return nil, err
	}
	if err := s.waitFor(ctx, daemon); err != nil {
		return nil, err
	}
	if err := s.start(cred, "ssh", s.reverseArgs(daemon, target)...); err != nil {
		return nil, err
	}
	return s, s.waitFor(ctx, s.port)
}

func freePorts(n int) (out []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // held until all are chosen
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return nil, err
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			return nil, err
		}
		out = append(out, number)
	}
	return out, nil
}

// keys makes a key for each side.
func (s *sshTunnel) keys(uid, gid int) error {
	for _, name := range []string{"host", "user"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, name)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ssh-keygen: %w: %s", err, out)
		}
	}
	files, err := filepath.Glob(filepath.Join(s.dir, "*"))
	if err != nil {
		return err
	}
	for _, path := range append(files, s.dir) {
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

func (s *sshTunnel) daemonArgs(port int) []string {
	return sshOptions([]string{"-D", "-e", "-f", "/dev/null"}, map[string]string{
		"ListenAddress": "127.0.0.1:" + strconv.Itoa(port), "HostKey": filepath.Join(s.dir, "host"), "PidFile": "none",
		"AuthorizedKeysFile": filepath.Join(s.dir, "user.pub"), "StrictModes": "no", "PasswordAuthentication": "no",
		"KbdInteractiveAuthentication": "no", "LogLevel": "ERROR",
	})
}

func (s *sshTunnel) reverseArgs(daemon, target int) []string {
	forward := fmt.Sprintf("127.0.0.1:%d:127.0.0.1:%d", s.port, target)
	args := sshOptions([]string{"-N", "-F", "none", "-R", forward, "-p", strconv.Itoa(daemon), "-i", filepath.Join(s.dir, "user")}, map[string]string{
		"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "ExitOnForwardFailure": "yes", "BatchMode": "yes",
		"IdentitiesOnly": "yes", "LogLevel": "ERROR",
	})
	return append(args, sshUser+"@127.0.0.1")
}

func sshOptions(args []string, options map[string]string) []string {
	for name, value := range options {
		args = append(args, "-o", name+"="+value)
	}
	return args
}

func (s *sshTunnel) log() string { return filepath.Join(s.dir, "log") }

func (s *sshTunnel) start(cred *syscall.Credential, program string, args ...string) error {
	// Not a pipe: sshd's sessions would hold it open after sshd itself has ended.
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setpgid: true} // Ctrl-C is for the benchmark alone
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.procs = append(s.procs, cmd)
	return nil
}

// waitFor waits until somebody listens on the port.
func (s *sshTunnel) waitFor(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			said, _ := os.ReadFile(s.log())
			return fmt.Errorf("nobody listens on %s: %s", address, lastLine(string(said)))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends both sides, the private one first: its session ends with it.
func (s *sshTunnel) stop() {
	for _, cmd := range slices.Backward(s.procs) {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
	}
	os.RemoveAll(s.dir)
}
