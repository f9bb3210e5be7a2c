// Package config reads what users write: YAML files of resources, and the JSON of one
// resource.
//
// It owns the strictness: an unknown field, a wrong type, a key twice, a malformed
// prefix, address or duration is refused with its place and its reason, and every
// problem is reported, not only the first. What fields there are it learns from the
// JSON tags of core's resource types. It also keeps where in its file each field
// stands, so that an error that the service finds later can be shown there.
//
// It does not judge whether values make sense together: that is package validate.
//
// The CLI calls Load and Place; the service calls DecodeJSON. Only the CLI's side
// resolves {env: NAME} and {file: PATH} in place of a secret.
package config
