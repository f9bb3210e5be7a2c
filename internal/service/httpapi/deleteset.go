package httpapi

import (
	"net/http"
	"strconv"

	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/service"
)

// deleteRequest is the body of POST /v1/delete.
type deleteRequest struct {
	Objects []struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
	} `json:"objects"`
	IgnoreMissing bool   `json:"ignoreMissing"`
	Force         bool   `json:"force"`
	Reason        string `json:"reason"`
}

// deleteAll deletes several resources, all or none.
func (a *api) deleteAll(w http.ResponseWriter, r *http.Request) error {
	wait, err := period(r, "wait", maxWait)
	if err != nil {
		return err
	}
	var req deleteRequest
	if err := readJSON(w, r, maxRequest, &req); err != nil {
		return err
	}
	in := service.DeleteSet{IgnoreMissing: req.IgnoreMissing, DeleteOptions: service.DeleteOptions{Force: req.Force, Reason: req.Reason}}
	for i, o := range req.Objects {
		field := "objects[" + strconv.Itoa(i) + "]"
		k, ok := LookupKind(o.Kind)
		if !ok || o.Name == "" {
			return errs.New(errs.Invalid, "%s: a kind and a name are needed, not %q and %q", field, o.Kind, o.Name).On("", field)
		}
		in.Objects = append(in.Objects, service.ObjectRef{Kind: core.Kind(k.Name), Name: o.Name})
	}
	done, err := a.f.DeleteAll(r.Context(), in)
	if err != nil {
		return err
	}
	if done == nil {
		done = []service.Applied{}
	}
	return writeJSON(w, http.StatusOK, changes{a.acted(r, wait), done})
}
