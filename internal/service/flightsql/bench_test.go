package flightsql

import (
	"syscall"
	"testing"
	"time"

	"github.com/sluice-gateway/sluice/internal/service/frontendtest"
)

// BenchmarkShortQuery is GetFlightInfo and DoGet of one row over loopback, all but the
// member's part.
func BenchmarkShortQuery(b *testing.B) {
	front := frontendtest.New()
	front.On("one", frontendtest.Whole(frontendtest.Numbers(1, 1)))
	_, addr := serveLeaky(b, front, nil)
	c, ctx := client(b, addr), outgoing(b)
	for b.Loop() {
		info, err := c.Execute(ctx, "one")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := drain(ctx, c, info.Endpoint[0].Ticket); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBulk forwards frames of about a megabyte; the client takes them unread.
func BenchmarkBulk(b *testing.B) {
	front := frontendtest.New()
	answer := frontendtest.Long(200, 50000)
	front.On("bulk", answer)
	_, addr := serveLeaky(b, front, nil)
	c, ctx := client(b, addr), outgoing(b)
	b.SetBytes(int64(answer.Repeat * len(answer.Batch)))
	before := cpu()
	defer func() { b.ReportMetric(float64((cpu()-before).Milliseconds())/float64(b.N), "cpu-ms/op") }()
	for b.Loop() {
		info, err := c.Execute(ctx, "bulk")
		if err != nil {
			b.Fatal(err)
		}
		stream, err := c.Client.DoGet(ctx, info.Endpoint[0].Ticket)
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for ; err == nil; n++ {
			_, err = stream.Recv()
		}
		if n < answer.Repeat {
			b.Fatal(err)
		}
	}
}

// cpu is what this process, service and client together, has used so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
