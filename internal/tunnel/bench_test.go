package tunnel_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sluice-gateway/sluice/internal/tunnel"
	"github.com/sluice-gateway/sluice/internal/tunnel/tunneltest"
)

// served answers with as many bytes as the path says, in blocks of the size that an
// Arrow writer makes.
func served(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
	block := make([]byte, 256<<10)
	for n > 0 {
		k := min(n, len(block))
		if _, err := w.Write(block[:k]); err != nil {
			return
		}
		n -= k
	}
}

// ways are what is compared: the tunnel, its parts left out, and plain HTTP.
func ways(b *testing.B, run func(b *testing.B, rt http.RoundTripper, url string)) {
	b.Run("tunnel", func(b *testing.B) {
		h := tunneltest.StartWith(b, tunneltest.Options{Handler: http.HandlerFunc(served), Parked: 20})
		run(b, h.RoundTripper, "http://member")
	})
	b.Run("without relay", func(b *testing.B) {
		h := tunneltest.StartWith(b, tunneltest.Options{Handler: http.HandlerFunc(served), Parked: 20, NoRelay: true})
		run(b, h.RoundTripper, "http://member")
	})
	b.Run("plain HTTP", func(b *testing.B) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(served)}
		go srv.Serve(ln)
		b.Cleanup(func() { srv.Close() })
		tr := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true, ReadBufferSize: 64 << 10, WriteBufferSize: 16 << 10}
		b.Cleanup(tr.CloseIdleConnections)
		run(b, tr, "http://"+ln.Addr().String())
	})
}

func fetch(rt http.RoundTripper, url string, want int64, buf []byte) error {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(`{"sql":"select 1"}`))
	if err != nil {
		return err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
	if err == nil && n != want {
		err = fmt.Errorf("%d bytes, want %d", n, want)
	}
	return err
}

func BenchmarkRequest1KB(b *testing.B) {
	for _, workers := range []int{1, 16} {
		b.Run(fmt.Sprintf("workers=%d", workers), func(b *testing.B) {
			ways(b, func(b *testing.B, rt http.RoundTripper, url string) {
				var left atomic.Int64
				left.Store(int64(b.N))
				done := make(chan error, workers)
				b.ResetTimer()
				for range workers {
					go func() {
						buf := make([]byte, 4<<10)
						for left.Add(-1) >= 0 {
							if err := fetch(rt, url+"/1024", 1024, buf); err != nil {
								done <- err
								return
							}
						}
						done <- nil
					}()
				}
				for range workers {
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func BenchmarkBulk(b *testing.B) {
	const size = 64 << 20
	ways(b, func(b *testing.B, rt http.RoundTripper, url string) {
		b.SetBytes(size)
		buf := make([]byte, 256<<10)
		b.ResetTimer()
		for range b.N {
			if err := fetch(rt, url+"/"+strconv.Itoa(size), size, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkReconnect is what a query would pay without parked connections.
func BenchmarkReconnect(b *testing.B) {
	h := tunneltest.StartWith(b, tunneltest.Options{
		Handler: http.HandlerFunc(served), Parked: 1, Hub: tunnel.HubOptions{MaxData: 1},
	})
	for b.Loop() {
		req, _ := http.NewRequest(http.MethodPost, "http://member/1000000", nil)
		resp, err := h.RoundTripper.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close() // before its end: the connection goes, and the next has to come
	}
}
