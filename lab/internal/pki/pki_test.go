package pki

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func certificate(t *testing.T, p Pair) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(p.Cert)
	require.NotNil(t, block)
	c, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return c
}

func TestSignedCertificatesVerify(t *testing.T) {
	a, err := LoadAuthority(t.TempDir(), "cluster", time.Now)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(a.Cert))

	server, err := a.Sign(Request{CommonName: "s", Names: []string{"kubernetes"}, Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.1")}})
	require.NoError(t, err)
	for _, name := range []string{"kubernetes", "10.96.0.1"} {
		_, err = certificate(t, server).Verify(x509.VerifyOptions{Roots: pool, DNSName: name})
		require.NoError(t, err, name)
	}

	client, err := a.Sign(Request{CommonName: "system:node:n", Groups: []string{"system:nodes"}})
	require.NoError(t, err)
	c := certificate(t, client)
	require.Equal(t, []string{"system:nodes"}, c.Subject.Organization)
	_, err = c.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	require.NoError(t, err)
	_, err = c.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	require.Error(t, err, "a client's certificate must not serve")
}

func TestAuthorityAndKeysAreKept(t *testing.T) {
	dir := t.TempDir()
	first, err := LoadAuthority(dir, "cluster", time.Now)
	require.NoError(t, err)
	again, err := LoadAuthority(dir, "cluster", time.Now)
	require.NoError(t, err)
	require.Equal(t, first.Pair, again.Pair)
	other, err := LoadAuthority(dir, "front-proxy", time.Now)
	require.NoError(t, err)
	require.NotEqual(t, first.Cert, other.Cert)

	k1, err := LoadKey(dir, "sa")
	require.NoError(t, err)
	k2, err := LoadKey(dir, "sa")
	require.NoError(t, err)
	require.Equal(t, k1, k2)
}

func TestHalfWrittenAuthorityIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cluster.key"), []byte("left by an interrupted run"), 0o600))
	_, err := LoadAuthority(dir, "cluster", time.Now)
	require.NoError(t, err)
}
