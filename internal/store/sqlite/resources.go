package sqlite

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
)

const selectResource = "SELECT kind, tenant, uid, version, created_at, updated_at, spec FROM resources "

func (t *tx) ListResources(tenant core.TenantID, k core.Kind) ([]core.Stored, error) {
	return list(t, "list resources", selectResource+"WHERE tenant = ?1 AND (?2 = '' OR kind = ?2) ORDER BY kind, name",
		[]any{tenant, k}, scanResource)
}

func (t *tx) GetResource(tenant core.TenantID, k core.Kind, name string) (core.Stored, error) {
	return one(t, objectName(k, name), selectResource+"WHERE tenant = ? AND kind = ? AND name = ?", []any{tenant, k, name}, scanResource)
}

func objectName(k core.Kind, name string) string { return string(k) + "/" + name }

func scanResource(row scanner) (core.Stored, error) {
	var r core.Stored
	var kind core.Kind
	var spec string
	if err := row.Scan(&kind, &r.Tenant, &r.UID, &r.Version, timeColumn{&r.CreatedAt}, timeColumn{&r.UpdatedAt}, &spec); err != nil {
		return r, err
	}
	if r.Spec = core.New(kind); r.Spec == nil {
		return r, fmt.Errorf("a resource of the unknown kind %q is stored", kind)
	}
	return r, json.Unmarshal([]byte(spec), r.Spec)
}

func (t *tx) PutResource(r core.Stored) error {
	object := objectName(r.Spec.Kind(), r.Spec.ResourceName())
	if path := secretIn(reflect.ValueOf(r.Spec), ""); path != "" {
		return errs.New(errs.Internal, "%s: %s holds a secret in the clear; it is not stored", object, path).On(object, path)
	}
	spec, err := json.Marshal(r.Spec)
	if err != nil {
		return errs.New(errs.Internal, "store %s: %w", object, err).On(object, "")
	}
	n, err := t.exec("store "+object, `
		INSERT INTO resources (uid, tenant, kind, name, version, created_at, updated_at, spec) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (tenant, kind, name) DO UPDATE
			SET version = excluded.version, updated_at = excluded.updated_at, spec = excluded.spec
			WHERE uid = excluded.uid`,
		r.UID, r.Tenant, r.Spec.Kind(), r.Spec.ResourceName(), r.Version, nanos(r.CreatedAt), nanos(r.UpdatedAt), string(spec))
	switch {
	case isUnique(err):
		return t.uidConflict(object, r.UID)
	case err == nil && n == 0:
		return errs.New(errs.Conflict, "%s exists with another UID than %s: it was deleted and made again", object, r.UID).On(object, "")
	}
	return err
}

// uidConflict names whose UID it is.
func (t *tx) uidConflict(object, uid string) error {
	var kind core.Kind
	var name string
	if err := t.row("read the owner of a UID", "SELECT kind, name FROM resources WHERE uid = ?", []any{uid}, &kind, &name); err != nil {
		return err
	}
	return errs.New(errs.Conflict, "%s can't have the UID %s: it is that of %s", object, uid, objectName(kind, name)).On(object, "")
}

// secretIn returns the path of a secret in v that is not empty, or "".
func secretIn(v reflect.Value, path string) string {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			return secretIn(v.Elem(), path)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[core.Secret]() {
			if !v.IsZero() {
				return path
			}
			return ""
		}
		for i := range v.NumField() {
			if found := secretIn(v.Field(i), path+"."+v.Type().Field(i).Name); found != "" {
				return found
			}
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if found := secretIn(v.Index(i), fmt.Sprintf("%s[%d]", path, i)); found != "" {
				return found
			}
		}
	}
	return ""
}

func (t *tx) DeleteResource(tenant core.TenantID, k core.Kind, name string) error {
	object := objectName(k, name)
	n, err := t.exec("delete "+object, "DELETE FROM resources WHERE tenant = ? AND kind = ? AND name = ?", tenant, k, name)
	if err == nil && n == 0 {
		return errs.New(errs.NotFound, "there is no %s", object).On(object, "")
	}
	return err
}

func (t *tx) PutSecret(tenant core.TenantID, ownerUID, name string, sealed []byte) error {
	_, err := t.exec("store secret "+name, `
		INSERT INTO secrets (tenant, owner_uid, name, sealed) VALUES (?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET sealed = excluded.sealed`, tenant, ownerUID, name, sealed)
	if isForeignKey(err) {
		return errs.New(errs.NotFound, "there is no resource with the UID %s to keep the secret %s for", ownerUID, name)
	}
	return err
}

func (t *tx) GetSecret(tenant core.TenantID, ownerUID, name string) ([]byte, error) {
	var sealed []byte
	err := t.row("read secret "+name, "SELECT sealed FROM secrets WHERE tenant = ? AND owner_uid = ? AND name = ?",
		[]any{tenant, ownerUID, name}, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errs.New(errs.NotFound, "there is no secret %s of the resource with the UID %s", name, ownerUID)
	}
	return sealed, err
}

func (t *tx) ListTenants() ([]core.TenantID, error) {
	return list(t, "list tenants", "SELECT DISTINCT tenant FROM resources ORDER BY tenant", nil, func(row scanner) (core.TenantID, error) {
		var id core.TenantID
		return id, row.Scan(&id)
	})
}
