package testpg

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func (i *instance) data() string    { return filepath.Join(i.dir, "data") }
func (i *instance) logFile() string { return filepath.Join(i.dir, "log") }

// command runs a PostgreSQL program as the server's user, out of the terminal's
// process group so that Ctrl-C reaches the test first.
func (i *instance) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(binDir, name), args...)
	cmd.Dir = i.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=" + i.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: i.cred, Setpgid: true}
	return cmd
}

// launch starts a command in the server's network namespace. The thread that goes there
// serves nothing else: it ends with its goroutine.
func (i *instance) launch(cmd *exec.Cmd) error {
	if i.netns == "" {
		return cmd.Start()
	}
	f, err := os.Open(i.netns)
	if err != nil {
		return err
	}
	defer f.Close()
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// watchScript ends the server and removes its directory once standard input closes,
// which the kernel sees to however the test binary ends.
const watchScript = `cat >/dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$1/data" ]; then
	kill -QUIT "$pid"
	n=0
	while [ -e "/proc/$pid" ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
fi
rm -rf "$1"`

func (i *instance) startWatch() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("sh", "-c", watchScript, "sh", i.dir)
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return err
	}
	go func() { _ = cmd.Wait() }() // ends when w closes, in remove
	i.watch = w
	return nil
}

func (i *instance) own(path string) error {
	if i.cred == nil {
		return nil
	}
	return os.Chown(path, int(i.cred.Uid), int(i.cred.Gid))
}

// write writes a file of the data directory with the rights that the server demands.
func (i *instance) write(name, content string) error {
	path := filepath.Join(i.data(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	return i.own(path)
}

func (i *instance) logTail() string {
	b, err := os.ReadFile(i.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// writeCertificate makes an authority and a server certificate for names.
func (i *instance) writeCertificate(names []string) error {
	caKey, ca, err := certificate("testpg authority", nil, nil, nil)
	if err != nil {
		return err
	}
	key, cert, err := certificate("testpg server", names, ca, caKey)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	i.ca = toPEM("CERTIFICATE", ca.Raw)
	if err := i.write("server.crt", toPEM("CERTIFICATE", cert.Raw)); err != nil {
		return err
	}
	return i.write("server.key", toPEM("PRIVATE KEY", der))
}

func toPEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// certificate makes a key and a certificate: an authority if parent is nil.
func certificate(cn string, names []string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if parent == nil {
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, parentKey = tmpl, key
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return key, cert, err
}
