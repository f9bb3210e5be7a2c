package postgres

import (
	"testing"

	"github.com/sluice-gateway/sluice/internal/testpg"
)

func TestSmoke(t *testing.T) {
	s := testpg.Shared(t)
	db := openSource(t, s)
	for range 3 {
		if got := queryValue(t, db, "select 1"); got != "1" {
			t.Fatal(got)
		}
	}
	t.Log(queryRows(t, db, "select i, i::text as t, null as x from generate_series(1,3) i"))
	t.Log(queryErr(t, db, "select nope"))
	t.Log(queryErr(t, db, "create table x (a int)"))
	if got := s.Value(t, "select count(*) from pg_stat_activity where usename='app'"); got != "1" {
		t.Fatalf("%s connections", got)
	}
}
