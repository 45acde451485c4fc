package pki

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// Keys of the Secret that keeps a Set.
const (
	// KeyBundle holds every trusted authority; clients and Pods use it.
	KeyBundle = "ca.crt"
	// KeyCertificate and KeyPrivate hold the authority that signs (in a leaf's Secret: the leaf).
	KeyCertificate = "tls.crt"
	KeyPrivate     = "tls.key"
	// KeyNextCertificate and KeyNextPrivate hold the authority that will sign next, while there is one.
	KeyNextCertificate = "next.crt"
	KeyNextPrivate     = "next.key"
)

// Set is the authorities of one database.
type Set struct {
	// Signer signs leaves.
	Signer *Authority
	// Next will sign once it has been published for Overlap; nil most of the time.
	Next *Authority
	// Trusted are former signers that still verify leaves.
	Trusted []*Authority
}

// NewSet makes the first authority of a database.
func NewSet(name string, now time.Time) (*Set, error) {
	signer, err := NewAuthority(name, now)
	if err != nil {
		return nil, err
	}
	return &Set{Signer: signer}, nil
}

// Trust adds the authorities of a bundle that are not known and have not ended: they verify leaves, and sign none. It is how
// a set that was made in the place of a lost one lets those go on who have what the lost one signed.
func (s *Set) Trust(bundle []byte, now time.Time) error {
	certs, err := ParseCertificates(bundle)
	if err != nil {
		return err
	}
	for _, cert := range certs {
		if now.Before(cert.NotAfter) && !bytes.Contains(s.Bundle(), encodeCertificate(cert.Raw)) {
			s.Trusted = append(s.Trusted, &Authority{Certificate: cert})
		}
	}
	return nil
}

// ParseSet reads what Data wrote. A Secret somebody damaged is an error, never silently replaced: a new authority
// would cut every process off at once.
func ParseSet(data map[string][]byte) (*Set, error) {
	signer, err := ParseAuthority(data[KeyCertificate], data[KeyPrivate])
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	set := &Set{Signer: signer}
	if len(data[KeyNextCertificate]) > 0 {
		if set.Next, err = ParseAuthority(data[KeyNextCertificate], data[KeyNextPrivate]); err != nil {
			return nil, fmt.Errorf("next authority: %w", err)
		}
	}
	bundle, err := ParseCertificates(data[KeyBundle])
	if err != nil {
		return nil, err
	}
	for _, cert := range bundle {
		if cert.Equal(signer.Certificate) || (set.Next != nil && cert.Equal(set.Next.Certificate)) {
			continue
		}
		set.Trusted = append(set.Trusted, &Authority{Certificate: cert})
	}
	return set, nil
}

// Data is the set as the data of a Secret.
func (s *Set) Data() (map[string][]byte, error) {
	cert, key, err := s.Signer.KeyPair()
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{KeyBundle: s.Bundle(), KeyCertificate: cert, KeyPrivate: key}
	if s.Next != nil {
		if data[KeyNextCertificate], data[KeyNextPrivate], err = s.Next.KeyPair(); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// Bundle is every authority to trust, as PEM: the signer, the next one, the former ones.
func (s *Set) Bundle() []byte {
	var out bytes.Buffer
	out.Write(encodeCertificate(s.Signer.Certificate.Raw))
	if s.Next != nil {
		out.Write(encodeCertificate(s.Next.Certificate.Raw))
	}
	for _, a := range s.Trusted {
		out.Write(encodeCertificate(a.Certificate.Raw))
	}
	return out.Bytes()
}

// Step takes at most one step of the rotation and says whether it changed s. Call it again after NextStep.
func (s *Set) Step(now time.Time) (changed bool, err error) {
	if s.Signer == nil {
		return false, errors.New("a set without a signer cannot rotate")
	}
	switch {
	case s.Next == nil && !now.Before(introduceAt(s.Signer)):
		next, err := NewAuthority(s.Signer.Certificate.Subject.CommonName, now)
		if err != nil {
			return false, err
		}
		s.Next = next
		return true, nil
	case s.Next != nil && !now.Before(promoteAt(s.Next)):
		old := &Authority{Certificate: s.Signer.Certificate}
		s.Signer, s.Next, s.Trusted = s.Next, nil, append(s.Trusted, old)
		return true, nil
	}
	kept := s.Trusted[:0:0]
	for _, a := range s.Trusted {
		if now.Before(a.Certificate.NotAfter) {
			kept = append(kept, a)
		}
	}
	changed = len(kept) != len(s.Trusted)
	s.Trusted = kept
	return changed, nil
}

// NextStep is when Step will have something to do.
func (s *Set) NextStep() time.Time {
	next := introduceAt(s.Signer)
	if s.Next != nil {
		next = promoteAt(s.Next)
	}
	for _, a := range s.Trusted {
		if a.Certificate.NotAfter.Before(next) {
			next = a.Certificate.NotAfter
		}
	}
	return next
}

func introduceAt(a *Authority) time.Time {
	return a.Certificate.NotBefore.Add(clockSkew + AuthorityRenewAfter)
}

func promoteAt(a *Authority) time.Time {
	return a.Certificate.NotBefore.Add(clockSkew + Overlap)
}
