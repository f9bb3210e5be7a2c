package postgres

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/sluice-gateway/sluice/internal/connector"
	"github.com/sluice-gateway/sluice/internal/connector/connectortest"
	"github.com/sluice-gateway/sluice/internal/memberapi"
	"github.com/sluice-gateway/sluice/internal/testpg"
)

func TestSuite(t *testing.T) {
	s := testpg.Shared(t)
	s.Exec(t, "create table t (a int); grant all on t to app")
	connectortest.Run(t, connectortest.Harness{
		Connector: New(), Source: sourceOf(s), Options: connector.Options{Resolve: noNames},
		Rows: func(n int) string {
			return fmt.Sprintf("select i, case when i %% 3 <> 0 then 'row ' || i end from generate_series(1, %d) i", n)
		},
		Hang:        "select pg_sleep(60)",
		SyntaxError: "selekt 1", UnknownTable: "select * from nope", Write: "insert into t values (1)",
		Leave: "set application_name to 'someone else'", Look: "show application_name", Clean: "sluice",
		Running: func(t testing.TB) int {
			n, _ := strconv.Atoi(s.Value(t, stillActive))
			return n
		},
		Unreachable: func(src *memberapi.Source) {
			l := listenLocal(t)
			src.Parameters["port"] = fmt.Sprint(portOf(l))
			l.Close()
		},
		WrongPassword: func(src *memberapi.Source) { src.Password = "wrong" },
	})
}
