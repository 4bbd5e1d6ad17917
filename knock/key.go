package knock

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// Key is a secret shared with a server. Whatever prints it, in any verb of fmt,
// in a log or in JSON, prints "[key]"; only [Key.Reveal] tells. The zero Key is
// none.
type Key struct {
	// fmt asks no method of a key that stands in an unexported field of something
	// else. Of a pointer to a string it then prints the address, in every verb; a
	// pointer to a slice it follows where the verb is wrong.
	secret *string
}

// The length of a key in bytes. A longer one is no stronger: HMAC-SHA256 would
// hash it down (RFC 2104, section 3).
const (
	minKey = 32
	maxKey = 64
)

const keyKind = "portknock-key-" // what every key's text begins with; then the version
const keyPrefix = keyKind + "1:"

const keyAlphabet = "abcdefghijklmnopqrstuvwxyz234567"

var keyDigits = base32.NewEncoding(keyAlphabet).WithPadding(base32.NoPadding)

// NewKey returns 32 random bytes.
func NewKey() Key {
	secret := make([]byte, minKey)
	rand.Read(secret) // cannot fail: it ends the program first
	return KeyFrom(secret)
}

// KeyFrom returns the bytes of a foreign secret as a key, whatever they are. Only
// [MD5Hourly] takes one that is shorter than 32 bytes.
func KeyFrom(secret []byte) Key {
	own := string(secret)
	return Key{&own}
}

// ParseKey reads the text that [Key.Reveal] writes, in any case, and allows for
// blanks around it. Its errors tell a text that is no key from a key that has
// suffered, and quote nothing of either.
func ParseKey(text string) (Key, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	digits, ok := strings.CutPrefix(text, keyPrefix)
	switch {
	case !ok && strings.HasPrefix(text, keyKind):
		return Key{}, fmt.Errorf("the key has another version; this program's keys begin with %q", keyPrefix)
	case !ok:
		return Key{}, fmt.Errorf("not a key: it does not begin with %q", keyPrefix)
	case len(digits) < keyDigits.EncodedLen(minKey+crc32.Size):
		return Key{}, errors.New("the key is truncated; its end is missing")
	case len(digits) > keyDigits.EncodedLen(maxKey+crc32.Size):
		return Key{}, errors.New("the key is too long; remove the text after its end")
	}
	if strings.Trim(digits, keyAlphabet) != "" { // line ends would pass the decoder unseen
		return Key{}, errors.New("the key is mistyped; only letters and the digits 2 to 7 are allowed")
	}
	data, err := keyDigits.DecodeString(digits)
	if err != nil || keyDigits.EncodeToString(data) != digits { // so would bits beyond the last byte
		return Key{}, errors.New("the key is mistyped or truncated; no key ends like this")
	}
	secret, sum := data[:len(data)-crc32.Size], data[len(data)-crc32.Size:]
	if binary.BigEndian.Uint32(sum) != crc32.ChecksumIEEE(secret) {
		return Key{}, errors.New("the key is mistyped or truncated; its checksum is wrong")
	}
	return KeyFrom(secret), nil
}

// Reveal returns the key as text for [ParseKey], without a newline.
func (k Key) Reveal() string {
	secret := k.Bytes()
	return keyPrefix + keyDigits.EncodeToString(binary.BigEndian.AppendUint32(secret, crc32.ChecksumIEEE(secret)))
}

// Derive returns a host's own key, 32 bytes by HKDF-SHA256 (RFC 5869) of this one
// without salt, with the info "portknock/1 host", a zero byte and the name in
// lower case. It tells nothing of this key, nor of another host's.
func (k Key) Derive(host string) Key {
	secret, err := hkdf.Key(sha256.New, k.Bytes(), nil, "portknock/1 host\x00"+strings.ToLower(host), minKey)
	if err != nil {
		panic(err) // only for more than 255 hashes
	}
	return KeyFrom(secret)
}

// Fingerprint returns 16 hexadecimal digits by which two people can compare
// their keys in public: the start of HMAC-SHA256(key, "portknock/1 fingerprint").
// It is empty for a secret below 32 bytes, which could be guessed from it.
func (k Key) Fingerprint() string {
	if len(k.Bytes()) < minKey {
		return ""
	}
	return hex.EncodeToString(k.mac([]byte("portknock/1 fingerprint"))[:8])
}

const printed = "[key]"

// Format writes "[key]", whatever the verb.
func (Key) Format(s fmt.State, _ rune) { io.WriteString(s, printed) }

// MarshalText returns "[key]": for JSON, slog and all else that writes values.
func (Key) MarshalText() ([]byte, error) { return []byte(printed), nil }

// check refuses a key that could be guessed.
func (k Key) check() error {
	switch n := len(k.Bytes()); {
	case n == 0:
		return errors.New("no key")
	case n < minKey:
		return fmt.Errorf("the key has %d bytes; at least %d are needed", n, minKey)
	}
	return nil
}

// Bytes returns a copy of the secret, nil if there is none, for schemes that have
// a cryptography of their own. It and [Key.Reveal] are the only ways to it.
func (k Key) Bytes() []byte {
	if k.secret == nil {
		return nil
	}
	return []byte(*k.secret)
}

// mac returns the HMAC-SHA256 (RFC 2104) of a message, 32 bytes.
func (k Key) mac(message []byte) []byte {
	h := hmac.New(sha256.New, k.Bytes())
	h.Write(message)
	return h.Sum(nil)
}
