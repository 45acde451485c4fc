package agentapi

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Identity is where a process finds its own certificate and the CAs it trusts. Both are asked for at every handshake,
// so that a rotated certificate is used without a restart.
type Identity interface {
	Certificate() (*tls.Certificate, error)
	Roots() (*x509.CertPool, error)
}

// Names of the files in a directory of TLS material, the same as in a Kubernetes TLS Secret.
const (
	CAFile   = "ca.crt"
	CertFile = "tls.crt"
	KeyFile  = "tls.key"
)

// StaticIdentity is an Identity held in memory.
type StaticIdentity struct {
	Cert tls.Certificate
	CAs  *x509.CertPool
}

// NewStaticIdentity makes an identity of PEM blocks; ca may hold several certificates.
func NewStaticIdentity(ca, cert, key []byte) (*StaticIdentity, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("no CA certificate found in the PEM")
	}
	return &StaticIdentity{Cert: pair, CAs: pool}, nil
}

// Certificate implements Identity.
func (s *StaticIdentity) Certificate() (*tls.Certificate, error) { return &s.Cert, nil }

// Roots implements Identity.
func (s *StaticIdentity) Roots() (*x509.CertPool, error) { return s.CAs, nil }

// FileIdentity reads ca.crt, tls.crt and tls.key of a directory, again whenever one of them has changed. While a
// change is half written (certificate and key do not match yet) the previous pair stays in use.
type FileIdentity struct {
	dir string

	mu     sync.Mutex
	stamps [3]stamp
	loaded *StaticIdentity
}

type stamp struct {
	modified time.Time
	size     int64
}

// NewFileIdentity loads dir once, to fail early on a wrong path.
func NewFileIdentity(dir string) (*FileIdentity, error) {
	f := &FileIdentity{dir: dir}
	if _, err := f.current(); err != nil {
		return nil, err
	}
	return f, nil
}

// Certificate implements Identity.
func (f *FileIdentity) Certificate() (*tls.Certificate, error) {
	id, err := f.current()
	if err != nil {
		return nil, err
	}
	return id.Certificate()
}

// Roots implements Identity.
func (f *FileIdentity) Roots() (*x509.CertPool, error) {
	id, err := f.current()
	if err != nil {
		return nil, err
	}
	return id.Roots()
}

func (f *FileIdentity) current() (*StaticIdentity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamps, err := f.stat()
	if err == nil && f.loaded != nil && stamps == f.stamps {
		return f.loaded, nil
	}
	var fresh *StaticIdentity
	if err == nil {
		fresh, err = f.load()
	}
	if err != nil {
		if f.loaded != nil {
			return f.loaded, nil
		}
		return nil, fmt.Errorf("TLS files in %s: %w", f.dir, err)
	}
	f.loaded, f.stamps = fresh, stamps
	return fresh, nil
}

func (f *FileIdentity) stat() (stamps [3]stamp, err error) {
	for i, name := range []string{CAFile, CertFile, KeyFile} {
		info, err := os.Stat(filepath.Join(f.dir, name))
		if err != nil {
			return stamps, err
		}
		stamps[i] = stamp{modified: info.ModTime(), size: info.Size()}
	}
	return stamps, nil
}

func (f *FileIdentity) load() (*StaticIdentity, error) {
	var pem [3][]byte
	for i, name := range []string{CAFile, CertFile, KeyFile} {
		data, err := os.ReadFile(filepath.Join(f.dir, name))
		if err != nil {
			return nil, err
		}
		pem[i] = data
	}
	return NewStaticIdentity(pem[0], pem[1], pem[2])
}

// Peer is who is at the other end of a connection, proven by its certificate.
type Peer struct {
	Shard Shard
	Role  Role
}

// PeerOf reads shard and role from a verified connection.
func PeerOf(cs tls.ConnectionState) (Peer, error) {
	if len(cs.PeerCertificates) == 0 {
		return Peer{}, errors.New("peer presented no certificate")
	}
	uris := cs.PeerCertificates[0].URIs
	if len(uris) != 1 {
		return Peer{}, fmt.Errorf("peer certificate has %d SAN URIs, want one", len(uris))
	}
	shard, role, err := ParseURI(uris[0])
	if err != nil {
		return Peer{}, err
	}
	return Peer{Shard: shard, Role: role}, nil
}

// ServerTLS is the configuration of an agent's listener: any role of its own shard is let in; what each may call is
// decided per method.
func ServerTLS(id Identity, shard Shard) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     tls.RequireAnyClientCert, // verified below, against the roots of this moment
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.Certificate() },
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := verify(cs, id, shard, x509.ExtKeyUsageClientAuth, "")
			return err
		},
		// A resumed session would skip nothing (VerifyConnection still runs), but would keep using an old certificate.
		SessionTicketsDisabled: true,
	}
}

// ClientTLS is the configuration for calling an agent of shard.
func ClientTLS(id Identity, shard Shard) *tls.Config {
	name := ServerName(shard)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: name,
		// The standard verification would use the roots of the moment the configuration was made. VerifyConnection
		// does all of it instead: chain, usage, name, shard and role.
		InsecureSkipVerify: true, //nolint:gosec // see above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return id.Certificate()
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			peer, err := verify(cs, id, shard, x509.ExtKeyUsageServerAuth, name)
			if err != nil {
				return err
			}
			if peer.Role != RoleAgent {
				return fmt.Errorf("peer is a %s, want an agent", peer.Role)
			}
			return nil
		},
	}
}

func verify(cs tls.ConnectionState, id Identity, shard Shard, usage x509.ExtKeyUsage, dns string) (Peer, error) {
	peer, err := PeerOf(cs)
	if err != nil {
		return Peer{}, err
	}
	roots, err := id.Roots()
	if err != nil {
		return Peer{}, err
	}
	intermediates := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	_, err = cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		DNSName: dns, Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return Peer{}, err
	}
	if !authorizedShard(peer.Shard, shard, peer.Role) {
		return Peer{}, fmt.Errorf("peer belongs to shard %s (%s), want %s", peer.Shard, peer.Role, shard)
	}
	return peer, nil
}
