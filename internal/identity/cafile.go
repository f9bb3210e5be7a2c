package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sluice-gateway/sluice/internal/errs"
)

// The CA's files in the data directory.
const (
	certFile = "ca.pem"
	keyFile  = "ca.key"
)

// openKey loads the CA's key, or makes it.
func openKey(dir string) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(dir, keyFile)
	block, err := openPEM(path, 0o600, makeKey)
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(path); err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errs.New(errs.Invalid, "%s holds a key of type %T, want ECDSA", path, parsed)
	}
	return key, nil
}

func makeKey() (*pem.Block, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	return &pem.Block{Type: "PRIVATE KEY", Bytes: der}, nil
}

// checkPrivate refuses a key that others than its owner may read: it may have been read.
func checkPrivate(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("open the certificate authority: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return errs.New(errs.Invalid, "%s has mode %#o: others than its owner may read it", path, mode).
			WithHint("make a new one by removing it and %s, or, if you know that nobody read it: chmod 600 %s", certFile, path)
	}
	return nil
}

// openCertificate loads the CA's certificate, or makes it for key.
func openCertificate(dir string, key crypto.Signer, clock func() time.Time) (*x509.Certificate, error) {
	path := filepath.Join(dir, certFile)
	der, err := openPEM(path, 0o644, func() (*pem.Block, error) { return makeCertificate(key, clock()) })
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: %w", path, err)
	}
	pub, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(key.Public()) || !cert.IsCA {
		return nil, errs.New(errs.Invalid, "%s is not the certificate of %s", path, keyFile).
			WithHint("restore both from one backup; with both removed a new authority is made, and hosts and members have to join again")
	}
	if now := clock(); now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
		return nil, errs.New(errs.Invalid, "%s is valid from %s to %s only, and it is %s",
			path, cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	return cert, nil
}

func makeCertificate(key crypto.Signer, now time.Time) (*pem.Block, error) {
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Sluice service CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the certificate authority: %w", err)
	}
	return &pem.Block{Type: "CERTIFICATE", Bytes: der}, nil
}

// openPEM returns the one block of a file; where there is no file it writes what
// makeBlock gives, unless another process is first.
func openPEM(path string, mode fs.FileMode, makeBlock func() (*pem.Block, error)) ([]byte, error) {
	doc, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		var block *pem.Block
		if block, err = makeBlock(); err != nil {
			return nil, err
		}
		if err = createFile(path, pem.EncodeToMemory(block), mode); err == nil {
			doc, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the certificate authority: %w", err)
	}
	block, rest := pem.Decode(doc)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errs.New(errs.Invalid, "%s does not hold exactly one PEM block", path)
	}
	return block.Bytes, nil
}

// createFile makes a whole file appear at path, or leaves the one that is there: a
// link, unlike a rename, never replaces.
func createFile(path string, doc []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".ca-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(doc)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
