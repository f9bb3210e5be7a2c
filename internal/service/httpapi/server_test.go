package httpapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newServer(t *testing.T, h http.Handler) *httptest.Server {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

// serve runs a Server and returns it with the function that stops it and gives
// Serve's result.
func serve(t *testing.T, front *frontendtest.Front, opts ServerOptions) (*Server, func() error) {
	t.Helper()
	opts.Handler, opts.Logger = New(Options{Frontend: front, Logger: discard()}), discard()
	s, err := Listen(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("Serve does not return")
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return s, stop
}

// unixClient speaks HTTP through a socket.
func unixClient(path string) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}

// childSocket makes a test binary that is run again speak through a socket and print
// what it got.
const childSocket = "SLUICE_TEST_SOCKET"

func TestMain(m *testing.M) {
	if path := os.Getenv(childSocket); path != "" {
		resp, err := unixClient(path).Get("http://sluice/v1/gateways")
		if err != nil {
			fmt.Println(err)
			return
		}
		body, _ := io.ReadAll(resp.Body)
		fmt.Printf("%d %s", resp.StatusCode, body)
		return
	}
	os.Exit(m.Run())
}

// copySelf puts this test binary where every user can run it.
func copySelf(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "child")
	if err := os.WriteFile(exe, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return exe
}

// asUser runs a request through the socket as another user.
func asUser(t *testing.T, exe string, uid uint32, socket string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = []string{childSocket + "=" + socket}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestSocketKnowsItsPeer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root to be several users")
	}
	dir, err := os.MkdirTemp("", "sluice-http")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s.sock")
	front := frontendtest.New()
	_, stop := serve(t, front, ServerOptions{Socket: socket})

	const someone, owner = 65534, 65533
	exe := copySelf(t, dir)
	if out := asUser(t, exe, 0, socket); !strings.HasPrefix(out, "200 ") {
		t.Errorf("root: %s", out)
	}
	if out := asUser(t, exe, someone, socket); !strings.Contains(out, "permission denied") {
		t.Errorf("another user could connect: %s", out)
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if out := asUser(t, exe, someone, socket); !strings.HasPrefix(out, "403 ") || !strings.Contains(out, "not the owner") {
		t.Errorf("another user is not refused: %s", out)
	}
	if err := os.Chown(socket, owner, owner); err != nil {
		t.Fatal(err)
	}
	if out := asUser(t, exe, owner, socket); !strings.HasPrefix(out, "200 ") {
		t.Errorf("the socket's owner: %s", out)
	}
	if out := asUser(t, exe, 0, socket); !strings.HasPrefix(out, "200 ") {
		t.Errorf("root, not the owner: %s", out)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Error("the socket was left behind")
	}
}

func TestSocketOfADeadProcessIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	serve(t, frontendtest.New(), ServerOptions{Socket: socket})
	_, err = Listen(ServerOptions{Socket: socket, Logger: discard(), Handler: http.NotFoundHandler()})
	if errs.ClassOf(err) != errs.Conflict || errs.As(err).Hint == "" {
		t.Errorf("a second server: %v", err)
	}
	if resp, err := unixClient(socket).Get("http://sluice/healthz"); err != nil || resp.StatusCode != 200 {
		t.Errorf("the first server is gone: %v", err)
	}
	file := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file: "is no socket, and is left as it is", filepath.Dir(file): "is no socket", filepath.Join("/", strings.Repeat("x", 107)): "is 108 bytes long, Linux takes 107",
	} {
		if _, err := Listen(ServerOptions{Socket: path, Logger: discard(), Handler: http.NotFoundHandler()}); err == nil || !strings.Contains(err.Error(), want) || errs.As(err).Hint == "" {
			t.Errorf("%s: %v, want %q and a hint", path, err, want)
		}
	}
	if data, _ := os.ReadFile(file); string(data) != "data" {
		t.Error("the file is gone")
	}
}

func TestAddressInTheClearIsRefused(t *testing.T) {
	if _, err := Listen(ServerOptions{Address: "0.0.0.0:0", Logger: discard(), Handler: http.NotFoundHandler()}); errs.ClassOf(err) != errs.Invalid {
		t.Errorf("Listen: %v", err)
	}
}

func TestHalfACertificateIsRefused(t *testing.T) {
	certFile, keyFile, _ := frontendtest.WriteCert(t)
	for _, half := range [][2]string{{certFile, ""}, {"", keyFile}} {
		if _, err := LoadTLS(half[0], half[1]); errs.ClassOf(err) != errs.Invalid || errs.As(err).Hint != "give both --tls-cert and --tls-key" {
			t.Errorf("%q: %v", half, err)
		}
	}
}

func TestAddressInUse(t *testing.T) {
	s, _ := serve(t, frontendtest.New(), ServerOptions{Address: "127.0.0.1:0"})
	_, err := Listen(ServerOptions{Address: s.Addr().String(), Logger: discard(), Handler: http.NotFoundHandler()})
	if errs.ClassOf(err) != errs.Conflict || errs.As(err).Hint == "" {
		t.Errorf("%v", err)
	}
}

func TestTLSAndSocketTogether(t *testing.T) {
	certFile, keyFile, rootPEM := frontendtest.WriteCert(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(rootPEM)
	conf, err := LoadTLS(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s.sock")
	s, _ := serve(t, frontendtest.New(), ServerOptions{Address: "127.0.0.1:0", TLS: conf, Socket: socket})
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + s.Addr().String() + "/healthz")
	if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		t.Fatalf("TLS: %v %+v", err, resp)
	}
	resp.Body.Close()
	if resp, err := unixClient(socket).Get("http://sluice/v1/gateways"); err != nil || resp.StatusCode != 200 {
		t.Errorf("socket: %v", err)
	}
	if _, err := LoadTLS(keyFile, certFile); errs.ClassOf(err) != errs.Invalid {
		t.Errorf("key and certificate swapped: %v", err)
	}
}

func TestGracefulStop(t *testing.T) {
	for _, grace := range []time.Duration{20 * time.Second, 50 * time.Millisecond} {
		front := frontendtest.New()
		hang := frontendtest.Long(1, 3)
		hang.Tail, hang.Block, hang.Linger = nil, true, 100*time.Millisecond
		front.On("select", hang)
		s, stop := serve(t, front, ServerOptions{Address: "127.0.0.1:0", Grace: grace})
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+s.Addr().String()+"/v1/query", strings.NewReader(ask))
		req.Header.Set("Authorization", "Bearer "+frontendtest.Token)
		client := &http.Client{}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		go func() {
			time.Sleep(300 * time.Millisecond)
			if grace > time.Second {
				cancel() // the query ends by itself, within the grace
			}
		}()
		if err := stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); grace > time.Second && (took < 200*time.Millisecond || took > 15*time.Second) {
			t.Errorf("grace %s: stopped after %s", grace, took)
		}
		if front.Open() != 0 {
			t.Errorf("grace %s: Serve returned before the query had ended", grace)
		}
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("grace %s: the cut result reads as whole", grace)
		}
		cancel()
		client.CloseIdleConnections()
	}
}
