package httpapi

import "net/http"

// renewToken answers with a secret, the only answer that holds one.
func (a *api) renewToken(w http.ResponseWriter, r *http.Request) error {
	token, err := a.f.RenewToken(r.Context())
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	return writeJSON(w, http.StatusOK, map[string]string{"token": token.Reveal()})
}
