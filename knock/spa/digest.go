package spa

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"hash"
)

// Digest names a hash function, for the fields or the HMAC of a packet.
type Digest uint8

// The hash functions that fwknop supports. SHA256 is its default.
const (
	SHA256 Digest = iota
	MD5
	SHA1
	SHA384
	SHA512
	SHA3_256
	SHA3_512
)

func (Digest) names() []string {
	return []string{"sha256", "md5", "sha1", "sha384", "sha512", "sha3-256", "sha3-512"}
}

// String returns the name of the hash function in lower case, such as "sha256" or
// "sha3-256".
func (d Digest) String() string { return nameOf(d) }

var hashes = [...]func() hash.Hash{
	SHA256:   sha256.New,
	MD5:      md5.New,
	SHA1:     sha1.New,
	SHA384:   sha512.New384,
	SHA512:   sha512.New,
	SHA3_256: func() hash.Hash { return sha3.New256() },
	SHA3_512: func() hash.Hash { return sha3.New512() },
}

func (d Digest) sum(text []byte) []byte { return sum(hashes[d](), text) }

// mac returns the HMAC (RFC 2104) of a text.
func (d Digest) mac(key, text []byte) []byte { return sum(hmac.New(hashes[d], key), text) }

func sum(h hash.Hash, text []byte) []byte {
	h.Write(text)
	return h.Sum(nil)
}
