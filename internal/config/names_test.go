package config_test

import (
	"testing"

	"github.com/sluice-gateway/sluice/internal/config"
)

// TestNamesOnlyReadsNoSecret: neither a variable nor a file that is gone stands in the way
// of whoever wants names alone.
func TestNamesOnlyReadsNoSecret(t *testing.T) {
	t.Parallel()
	unset := func(string) (string, bool) { return "", false }
	if _, err := config.Load(config.Options{LookupEnv: unset}, "../../examples/corp"); err == nil {
		t.Fatal("the example needs no secret: this test shows nothing")
	}
	res, err := config.Load(config.Options{LookupEnv: unset, NamesOnly: true}, "../../examples/corp")
	if err != nil || len(res.Documents) != 8 {
		t.Errorf("%d documents, %v", len(res.Documents), err)
	}
}
