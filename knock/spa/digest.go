package spa

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"fmt"
	"hash"
	"strings"
)

// Digest is a hash function, for the fields or the HMAC of a packet.
type Digest uint8

// The hash functions that fwknop knows. SHA256 is its default.
const (
	SHA256 Digest = iota
	MD5
	SHA1
	SHA384
	SHA512
	SHA3_256
	SHA3_512
)

var digests = [...]struct {
	name string
	new  func() hash.Hash
}{
	{"sha256", sha256.New},
	{"md5", md5.New},
	{"sha1", sha1.New},
	{"sha384", sha512.New384},
	{"sha512", sha512.New},
	{"sha3-256", func() hash.Hash { return sha3.New256() }},
	{"sha3-512", func() hash.Hash { return sha3.New512() }},
}

// String returns the digest's name in lower case: "sha256", "sha3-256".
func (d Digest) String() string { return digests[d].name }

// ParseDigest reads a digest's name in any case, also as fwknop writes it:
// "SHA3_256".
func ParseDigest(s string) (Digest, error) {
	var names []string
	for i, d := range digests {
		if strings.EqualFold(strings.ReplaceAll(s, "_", "-"), d.name) {
			return Digest(i), nil
		}
		names = append(names, d.name)
	}
	return 0, fmt.Errorf("%q is not one of %s", s, strings.Join(names, ", "))
}

func (d Digest) sum(text []byte) []byte {
	h := digests[d].new()
	h.Write(text)
	return h.Sum(nil)
}

// mac returns an HMAC (RFC 2104).
func (d Digest) mac(key, text []byte) []byte {
	h := hmac.New(digests[d].new, key)
	h.Write(text)
	return h.Sum(nil)
}
