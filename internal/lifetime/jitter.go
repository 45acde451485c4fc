package lifetime

import "math"

// Fraction maps an identity to a number in [0, 1), the same one on every machine and in every release: the deadlines
// users see must not move when the operator is upgraded. Salt separates uses of one identity from each other.
//
// FNV-1a reads the bytes; on its own its high bits are poor for short similar names, so the finalizer of splitmix64
// mixes them.
func Fraction(salt, id string) float64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for i := range len(salt) {
		h = (h ^ uint64(salt[i])) * prime
	}
	h = (h ^ 0xff) * prime
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * prime
	}
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	h ^= h >> 31
	return math.Ldexp(float64(h>>11), -53)
}
