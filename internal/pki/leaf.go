package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"slices"
	"time"
)

// LeafLifetime is how long a leaf is valid, unless its authority ends before.
const LeafLifetime = 30 * 24 * time.Hour

// Request is what a leaf certifies.
type Request struct {
	// CommonName is what PostgreSQL's cert authentication maps to a role.
	CommonName string
	// URI is the identity the protocol checks.
	URI string
	// DNSNames a server is reached by; their order does not matter.
	DNSNames []string
	// Server and Client say which sides of a connection the leaf may be used on.
	Server, Client bool
}

// Leaf is a certificate with its key, as PEM.
type Leaf struct {
	CertificatePEM []byte
	KeyPEM         []byte
	NotAfter       time.Time
}

// Issue signs a new key for r, valid from now for LeafLifetime or until the signer ends.
func (s *Set) Issue(r Request, now time.Time) (*Leaf, error) {
	uri, err := url.Parse(r.URI)
	if err != nil {
		return nil, fmt.Errorf("identity %q: %w", r.URI, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of %s: %w", r.CommonName, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(LeafLifetime)
	if end := s.Signer.Certificate.NotAfter; end.Before(notAfter) {
		notAfter = end
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: r.CommonName},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  r.usages(),
		DNSNames:     r.names(),
		URIs:         []*url.URL{uri},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.Signer.Certificate, key.Public(), s.Signer.key)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %s: %w", r.CommonName, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &Leaf{CertificatePEM: encodeCertificate(der), KeyPEM: keyPEM, NotAfter: notAfter}, nil
}

// TLS is the leaf as crypto/tls wants it.
func (l *Leaf) TLS() (tls.Certificate, error) {
	return tls.X509KeyPair(l.CertificatePEM, l.KeyPEM)
}

// Stale says why the leaf in certPEM must be issued anew for r, and "" while it need not be: another signer signs
// now, half its life is over, or it certifies something else. Half, not more: an operator that was down for two
// weeks must still be in time. A signer that took a lost one's place has not been published before it signs: what the lost
// one signed stays in use for Overlap, until everybody has heard of the new one.
func (s *Set) Stale(certPEM []byte, r Request, now time.Time) string {
	certs, err := ParseCertificates(certPEM)
	if err != nil || len(certs) != 1 {
		return "Unreadable"
	}
	cert := certs[0]
	if cert.CheckSignatureFrom(s.Signer.Certificate) != nil && (!now.Before(promoteAt(s.Signer)) || !s.trusts(cert)) {
		return "SignerChanged"
	}
	if !now.Before(RenewAt(cert)) {
		return "Ageing"
	}
	names := slices.Clone(cert.DNSNames)
	slices.Sort(names)
	same := cert.Subject.CommonName == r.CommonName &&
		len(cert.URIs) == 1 && cert.URIs[0].String() == r.URI &&
		slices.Equal(names, r.names()) && slices.Equal(cert.ExtKeyUsage, r.usages())
	if !same {
		return "IdentityChanged"
	}
	return ""
}

// trusts reports whether a former signer signed the certificate.
func (s *Set) trusts(cert *x509.Certificate) bool {
	return slices.ContainsFunc(s.Trusted, func(a *Authority) bool { return cert.CheckSignatureFrom(a.Certificate) == nil })
}

// RenewAt is when a leaf is issued anew: half-way through its life.
func RenewAt(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
}

func (r Request) names() []string {
	names := slices.Clone(r.DNSNames)
	slices.Sort(names)
	return slices.Compact(names)
}

func (r Request) usages() []x509.ExtKeyUsage {
	var usages []x509.ExtKeyUsage
	if r.Server {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		usages = append(usages, x509.ExtKeyUsageClientAuth)
	}
	return usages
}
