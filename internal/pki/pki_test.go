package pki

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func agent() Request {
	return Request{CommonName: "agent.0123456789ab", URI: "theseus://ns/db-0/agent", DNSNames: []string{"b", "a", "a"}, Server: true, Client: true}
}

func verify(t *testing.T, bundle []byte, leaf *Leaf, now time.Time) error {
	t.Helper()
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(bundle))
	certs, err := ParseCertificates(leaf.CertificatePEM)
	require.NoError(t, err)
	_, err = certs[0].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func TestIssueAndVerify(t *testing.T) {
	set, err := NewSet("db", start)
	require.NoError(t, err)
	leaf, err := set.Issue(agent(), start)
	require.NoError(t, err)
	require.NoError(t, verify(t, set.Bundle(), leaf, start))
	require.NoError(t, verify(t, set.Bundle(), leaf, start.Add(-time.Minute)), "a clock that is a little behind")
	require.Error(t, verify(t, set.Bundle(), leaf, start.Add(LeafLifetime+time.Second)))
	_, err = leaf.TLS()
	require.NoError(t, err)

	other, err := NewSet("other", start)
	require.NoError(t, err)
	require.Error(t, verify(t, other.Bundle(), leaf, start), "another database's authority vouches for nothing here")
}

func TestIssueRefusesABadIdentity(t *testing.T) {
	set, err := NewSet("db", start)
	require.NoError(t, err)
	_, err = set.Issue(Request{URI: "theseus://%zz"}, start)
	require.ErrorContains(t, err, "identity")
}

func TestStale(t *testing.T) {
	set, err := NewSet("db", start)
	require.NoError(t, err)
	leaf, err := set.Issue(agent(), start)
	require.NoError(t, err)
	other, err := NewSet("db", start)
	require.NoError(t, err)

	for name, c := range map[string]struct {
		set  *Set
		pem  []byte
		edit func(*Request)
		now  time.Time
		want string
	}{
		"fresh":               {now: start},
		"order of names":      {now: start, edit: func(r *Request) { r.DNSNames = []string{"a", "b"} }},
		"before half-way":     {now: start.Add(LeafLifetime/2 - 10*time.Minute)},
		"half-way":            {now: start.Add(LeafLifetime / 2), want: "Ageing"},
		"another signer":      {set: other, now: start, want: "SignerChanged"},
		"another name":        {now: start, edit: func(r *Request) { r.DNSNames = append(r.DNSNames, "c") }, want: "IdentityChanged"},
		"another identity":    {now: start, edit: func(r *Request) { r.URI = "theseus://ns/db-1/agent" }, want: "IdentityChanged"},
		"another common name": {now: start, edit: func(r *Request) { r.CommonName = "x" }, want: "IdentityChanged"},
		"another usage":       {now: start, edit: func(r *Request) { r.Server = false }, want: "IdentityChanged"},
		"damaged":             {pem: []byte("junk"), now: start, want: "Unreadable"},
		"empty":               {pem: []byte{}, now: start, want: "Unreadable"},
	} {
		t.Run(name, func(t *testing.T) {
			s, pem, r := set, leaf.CertificatePEM, agent()
			if c.set != nil {
				s = c.set
			}
			if c.pem != nil {
				pem = c.pem
			}
			if c.edit != nil {
				c.edit(&r)
			}
			require.Equal(t, c.want, s.Stale(pem, r, c.now))
		})
	}
}

// TestRotationKeepsEverybodyConnected walks three years in steps of six hours. At every step two processes that
// loaded what was published up to Overlap/2 ago must still verify each other's leaves.
func TestRotationKeepsEverybodyConnected(t *testing.T) {
	set, err := NewSet("db", start)
	require.NoError(t, err)
	leaf, err := set.Issue(agent(), start)
	require.NoError(t, err)

	type published struct {
		bundle []byte
		leaf   *Leaf
	}
	old := published{set.Bundle(), leaf}
	signers := map[string]bool{}
	const step = 6 * time.Hour
	for now := start; now.Before(start.Add(3 * 365 * 24 * time.Hour)); now = now.Add(step) {
		data, err := set.Data()
		require.NoError(t, err)
		set, err = ParseSet(data)
		require.NoError(t, err, "a set survives being stored")
		due := !now.Before(set.NextStep())
		changed, err := set.Step(now)
		require.NoError(t, err)
		require.Equal(t, due, changed, "NextStep tells when Step acts")
		if set.Stale(leaf.CertificatePEM, agent(), now) != "" {
			leaf, err = set.Issue(agent(), now)
			require.NoError(t, err)
		}
		require.NoError(t, verify(t, set.Bundle(), leaf, now))
		require.NoError(t, verify(t, old.bundle, leaf, now), "one that has not loaded the newest bundle trusts the new leaf")
		require.NoError(t, verify(t, set.Bundle(), old.leaf, now), "the newest bundle trusts one that has not loaded its new leaf")
		old = published{set.Bundle(), leaf}
		signers[string(set.Signer.Certificate.Raw)] = true
		require.LessOrEqual(t, len(set.Trusted), 1)
	}
	require.Greater(t, len(signers), 3)
}

// TestALostAuthorityIsSucceeded: nobody can introduce the next authority when the one that signs is lost. What it signed goes
// on, beside the new one, which signs for those who exist once they had the time to hear of it.
func TestALostAuthorityIsSucceeded(t *testing.T) {
	lost, err := NewSet("db", start)
	require.NoError(t, err)
	leaf, err := lost.Issue(agent(), start)
	require.NoError(t, err)
	now := start.Add(10 * 24 * time.Hour)
	set, err := NewSet("db", now)
	require.NoError(t, err)
	require.Equal(t, "SignerChanged", set.Stale(leaf.CertificatePEM, agent(), now), "nothing is known of the old one")
	require.NoError(t, set.Trust(lost.Bundle(), now))
	require.NoError(t, set.Trust(lost.Bundle(), now))
	require.NoError(t, set.Trust(set.Bundle(), now))
	require.Len(t, set.Trusted, 1, "once, and not itself")
	data, err := set.Data()
	require.NoError(t, err)
	set, err = ParseSet(data)
	require.NoError(t, err)

	require.NoError(t, verify(t, set.Bundle(), leaf, now))
	require.Empty(t, set.Stale(leaf.CertificatePEM, agent(), now.Add(Overlap-time.Minute)), "others may not know the new one yet")
	other := agent()
	other.DNSNames = []string{"c"}
	require.Equal(t, "IdentityChanged", set.Stale(leaf.CertificatePEM, other, now))
	require.Equal(t, "SignerChanged", set.Stale(leaf.CertificatePEM, agent(), now.Add(Overlap)))

	fresh, err := set.Issue(agent(), now.Add(Overlap))
	require.NoError(t, err)
	require.NoError(t, verify(t, set.Bundle(), fresh, now.Add(Overlap)))
	require.Error(t, set.Trust([]byte("junk"), now))
	ended, err := NewSet("db", now)
	require.NoError(t, err)
	require.NoError(t, ended.Trust(lost.Bundle(), lost.Signer.Certificate.NotAfter))
	require.Empty(t, ended.Trusted, "it has ended")
}

func TestParseSetRefusesDamage(t *testing.T) {
	set, err := NewSet("db", start)
	require.NoError(t, err)
	other, err := NewSet("db", start)
	require.NoError(t, err)
	otherData, err := other.Data()
	require.NoError(t, err)
	for name, damage := range map[string]func(map[string][]byte){
		"no key":           func(d map[string][]byte) { delete(d, KeyPrivate) },
		"no certificate":   func(d map[string][]byte) { delete(d, KeyCertificate) },
		"another's key":    func(d map[string][]byte) { d[KeyPrivate] = otherData[KeyPrivate] },
		"damaged bundle":   func(d map[string][]byte) { d[KeyBundle] = []byte("junk") },
		"damaged next":     func(d map[string][]byte) { d[KeyNextCertificate] = []byte("junk") },
		"two signers":      func(d map[string][]byte) { d[KeyCertificate] = append(d[KeyCertificate], otherData[KeyCertificate]...) },
		"key is not a key": func(d map[string][]byte) { d[KeyPrivate] = d[KeyCertificate] },
	} {
		t.Run(name, func(t *testing.T) {
			data, err := set.Data()
			require.NoError(t, err)
			damage(data)
			_, err = ParseSet(data)
			require.Error(t, err)
		})
	}
}

func TestLeafEndsWithItsSigner(t *testing.T) {
	set, err := NewSet("db", start)
	require.NoError(t, err)
	late := set.Signer.Certificate.NotAfter.Add(-time.Hour)
	leaf, err := set.Issue(agent(), late)
	require.NoError(t, err)
	require.Equal(t, set.Signer.Certificate.NotAfter, leaf.NotAfter.UTC())
}
