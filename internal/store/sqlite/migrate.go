package sqlite

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/store"
)

// The files are numbered from 0001 without a gap. One that was released is never
// changed: a later one corrects it.
//
//go:embed migrations/*.sql
var migrations embed.FS

// migrate applies what is missing, all of it or nothing.
func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return errs.New(errs.Internal, "read the embedded migrations: %w", err)
	}
	return s.Write(ctx, func(st store.Tx) error {
		t := st.(*tx)
		var have int
		if err := t.row("read the schema's version", "PRAGMA user_version", nil, &have); err != nil {
			return err
		}
		if have > len(files) {
			return errs.New(errs.Invalid, "%s has schema version %d, this program knows up to %d: a newer version of Sluice wrote it", s.path, have, len(files)).
				WithHint("run that version, or a newer one")
		}
		for i, name := range files[have:] {
			if err := t.apply(have+i+1, name); err != nil {
				return err
			}
			s.log.Info("schema migrated", "path", s.path, "version", have+i+1)
		}
		return nil
	})
}

func (t *tx) apply(version int, name string) error {
	text, err := migrations.ReadFile(name)
	if err != nil {
		return errs.New(errs.Internal, "read %s: %w", name, err)
	}
	mark := fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d", version, applicationID)
	for _, sql := range []string{string(text), mark} {
		if _, err := t.exec("apply "+name, sql); err != nil {
			return err
		}
	}
	return nil
}
