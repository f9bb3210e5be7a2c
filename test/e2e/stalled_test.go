package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/flight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// TestAStalledFlightClientIsCutAndSlowsNobody: clients of Flight SQL that read a little and
// then nothing lose their queries, and with them the slots and the server's sessions; one on
// the same connection that reads goes on.
func TestAStalledFlightClientIsCutAndSlowsNobody(t *testing.T) {
	waiting.take(t)
	const stall = 10 * time.Second
	c := newCorpWith(t, "{stall: 10s, concurrency: 6}")
	cl, fctx := c.flightClient()
	md, _ := metadata.FromOutgoingContext(fctx)
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(context.Background(), md), 3*time.Minute)
	defer cancel()
	open := func(sql string) flight.FlightService_DoGetClient {
		info, err := cl.Execute(ctx, sql)
		if err != nil {
			t.Fatal(err)
		}
		s, err := cl.Client.DoGet(ctx, info.Endpoint[0].Ticket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	mark := func(i int) string { return fmt.Sprintf("flight stalled %d %s", i, c.Instance()) }
	const stalled = 5
	streams := make([]flight.FlightService_DoGetClient, stalled)
	begun := time.Now()
	for i := range stalled {
		streams[i] = open(slowRows(mark(i)))
	}
	if n := c.inFlight(); n != stalled && time.Since(begun) < stall {
		t.Errorf("%d slots are taken, want %d", n, stalled)
	}
	wantSwift(t, 20, func() {
		for s := open("select 1"); ; {
			if _, err := s.Recv(); err == io.EOF {
				return
			} else if err != nil {
				t.Fatalf("beside stalled clients a short query: %v", err)
			}
		}
	})
	for i := range stalled {
		eventually(t, 60*time.Second, "the statement left the server", func() bool { return c.activity(mark(i)) == 0 })
		rec := wantRecord(t, c, mark(i), "cancelled")
		if !strings.Contains(rec.Error, "took nothing of the result for 10s") {
			t.Errorf("the record says %q", rec.Error)
		}
		err := error(nil)
		for err == nil {
			_, err = streams[i].Recv()
		}
		if status.Code(err) != codes.Canceled || !strings.Contains(err.Error(), "took nothing of the result") {
			t.Errorf("once it reads again the client is told: %v", err)
		}
	}
	eventually(t, 60*time.Second, "the slots are free", func() bool { return c.inFlight() == 0 })
	if d := time.Since(begun); d < stall {
		t.Errorf("they were cut after %s, before their time of %s", d, stall)
	}
}

// inFlight is how many interactive slots of the gateway are taken.
func (c *corp) inFlight() int {
	c.t.Helper()
	var out struct {
		Status struct {
			Classes map[string]struct{ InFlight int }
		}
	}
	if err := json.Unmarshal([]byte(c.Must("get", "gateway", gateway, "-o", "json")), &out); err != nil {
		c.t.Fatal(err)
	}
	return out.Status.Classes["interactive"].InFlight
}
