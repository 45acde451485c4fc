// Package pki makes the certificates of a cluster: one authority for servers
// and clients, one for the aggregation layer, and the key that signs service
// account tokens. Everything lives ten years, which no lab will.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"theseus.dev/theseus/lab/internal/state"
)

const lifetime = 10 * 365 * 24 * time.Hour

// Pair is a certificate and its private key, PEM encoded.
type Pair struct {
	Cert []byte
	Key  []byte
}

// Authority signs certificates.
type Authority struct {
	Pair
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
}

// Request describes a certificate to be signed.
type Request struct {
	CommonName string
	// Groups become the organisations, which Kubernetes reads as groups.
	Groups []string
	// Names and Addresses make it a server certificate too.
	Names     []string
	Addresses []netip.Addr
}

// LoadAuthority reads the authority called name from dir, making it if it is
// not there.
func LoadAuthority(dir, name string, now func() time.Time) (*Authority, error) {
	certPath, keyPath := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if cert, err := os.ReadFile(certPath); err == nil {
		key, err := os.ReadFile(keyPath)
		if err != nil {
			return nil, fmt.Errorf("read the key of authority %s: %w", name, err)
		}
		return parse(Pair{cert, key}, now)
	}
	a, err := newAuthority(name, now)
	if err != nil {
		return nil, err
	}
	// The key first: a certificate on disk means that both are there.
	if err := state.WriteFile(keyPath, a.Key, 0o600); err != nil {
		return nil, err
	}
	return a, state.WriteFile(certPath, a.Cert, 0o644)
}

func newAuthority(name string, now func() time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial(now),
		Subject:               pkix.Name{CommonName: "theseus-lab " + name},
		NotBefore:             now().Add(-time.Hour),
		NotAfter:              now().Add(lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make authority %s: %w", name, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return parse(Pair{encodeCert(der), keyPEM}, now)
}

func parse(p Pair, now func() time.Time) (*Authority, error) {
	certBlock, _ := pem.Decode(p.Cert)
	keyBlock, _ := pem.Decode(p.Key)
	if certBlock == nil || keyBlock == nil {
		return nil, fmt.Errorf("the authority's files are damaged: run `lab clean`")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, err
	}
	return &Authority{Pair: p, cert: cert, key: key, now: now}, nil
}

// Sign makes a key and a certificate for it.
func (a *Authority) Sign(r Request) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(a.now),
		Subject:      pkix.Name{CommonName: r.CommonName, Organization: r.Groups},
		NotBefore:    a.now().Add(-time.Hour),
		NotAfter:     a.now().Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:     r.Names,
	}
	for _, addr := range r.Addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	if len(r.Names)+len(r.Addresses) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign the certificate of %s: %w", r.CommonName, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{encodeCert(der), keyPEM}, nil
}

// LoadKey reads the signing key called name from dir, making it if it is not
// there, and returns it PEM encoded.
func LoadKey(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name+".key")
	if b, err := os.ReadFile(path); err == nil {
		return b, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	b, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return b, state.WriteFile(path, b, 0o600)
}

// serial is unique because no two certificates are made in the same nanosecond
// of one authority's life, and a random part makes sure.
func serial(now func() time.Time) *big.Int {
	n, err := rand.Int(rand.Reader, big.NewInt(1<<32))
	if err != nil {
		n = big.NewInt(0)
	}
	return n.Add(n, new(big.Int).Lsh(big.NewInt(now().UnixNano()), 32))
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}
