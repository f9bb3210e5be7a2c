package memberapi_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/sluice-gateway/sluice/internal/memberapi"
)

func TestSourceHidesItsPassword(t *testing.T) {
	t.Parallel()
	src := memberapi.Source{Name: "orders", Type: "postgres", Password: "hunter2"}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("json", "source", src, "pointer", &src)
	slog.New(slog.NewTextHandler(&log, nil)).Info("text", "source", src, "pointer", &src)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&log, format, src)
		fmt.Fprintf(&log, format, &src)
	}
	if strings.Contains(log.String(), "hunter2") || !strings.Contains(log.String(), "orders") {
		t.Errorf("got %s", log.String())
	}
}
