package gateway

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"time"

	"github.com/sluice-gateway/sluice/internal/memberapi"
)

// Warm does once, in memory, what a member does first when it is wanted: a key and a
// request for a certificate, a TLS handshake with certificates on both sides, an HTTP
// request, JSON. Code and tables are then loaded, which takes longer than running them. It
// keeps nothing: the keys that it makes are forgotten.
func Warm() error {
	cert, pool, err := throwaway()
	if err != nil {
		return err
	}
	here, there := net.Pipe()
	defer here.Close()
	answered := make(chan error, 1)
	go func() { answered <- answerOnce(there, cert, pool) }()
	conn := tls.Client(here, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "warm", Certificates: []tls.Certificate{cert}})
	body, err := json.Marshal(memberapi.JoinRequest{Role: memberapi.RoleMember, CSR: cert.Certificate[0]})
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, "https://warm"+memberapi.PathJoin, bytes.NewReader(body))
	if err != nil {
		return err
	}
	err = req.Write(conn)
	here.Close()
	return errors.Join(err, <-answered)
}

// answerOnce reads one request at the other end of the pipe.
func answerOnce(raw net.Conn, cert tls.Certificate, pool *x509.CertPool) error {
	defer raw.Close()
	conn := tls.Server(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
		SessionTicketsDisabled: true, // nobody would read them
	})
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err
}

// throwaway makes a certificate that nothing else trusts.
func throwaway() (tls.Certificate, *x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	if _, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return tls.Certificate{}, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "warm"}, DNSNames: []string{"warm"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool, nil
}
