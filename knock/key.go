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

// Key holds a secret that is shared with a server. A Key prints as "[key]" with any verb
// of fmt, in a log and in JSON. Only [Key.Reveal] and [Key.Bytes] return the secret. The
// zero Key has no secret.
type Key struct {
	// secret points to a string, because fmt does not call the methods of a Key in an
	// unexported field. For a pointer to a string, fmt then prints only the address, with
	// every verb. For a pointer to a slice, it would print the content if the verb is wrong.
	secret *string
}

// The shortest and the longest key, in bytes. A longer key would not be stronger, because
// HMAC-SHA256 would first hash it to a shorter one (RFC 2104, section 3).
const (
	minKey = 32
	maxKey = 64
)

const keyKind = "portknock-key-" // start of the text of every key, before the version
const keyPrefix = keyKind + "1:"

const keyAlphabet = "abcdefghijklmnopqrstuvwxyz234567"

var keyDigits = base32.NewEncoding(keyAlphabet).WithPadding(base32.NoPadding)

// NewKey returns a key of 32 random bytes.
func NewKey() Key {
	secret := make([]byte, minKey)
	rand.Read(secret) // rand.Read never returns an error: it ends the program instead
	return KeyFrom(secret)
}

// KeyFrom returns the bytes of a foreign secret as a key, without a check. In this
// package, only [MD5Hourly] accepts a key that is shorter than 32 bytes.
func KeyFrom(secret []byte) Key {
	copied := string(secret)
	return Key{&copied}
}

// ParseKey reads the text that [Key.Reveal] returns, in upper or lower case. The text may
// have white space around it. The errors distinguish a text that is not a key from a
// damaged key. The errors do not quote the text.
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
	if strings.Trim(digits, keyAlphabet) != "" { // the decoder would ignore line ends
		return Key{}, errors.New("the key is mistyped; only letters and the digits 2 to 7 are allowed")
	}
	data, err := keyDigits.DecodeString(digits)
	if err != nil || keyDigits.EncodeToString(data) != digits { // the decoder ignores bits after the last byte
		return Key{}, errors.New("the key is mistyped or truncated; its end is wrong")
	}
	secret, sum := data[:len(data)-crc32.Size], data[len(data)-crc32.Size:]
	if binary.BigEndian.Uint32(sum) != crc32.ChecksumIEEE(secret) {
		return Key{}, errors.New("the key is mistyped or truncated; its checksum is wrong")
	}
	return KeyFrom(secret), nil
}

// Reveal returns the text of the key for [ParseKey], without a newline. ParseKey does not
// accept the text of the zero Key, or of another secret that does not have 32 to 64 bytes.
func (k Key) Reveal() string {
	secret := k.Bytes()
	return keyPrefix + keyDigits.EncodeToString(binary.BigEndian.AppendUint32(secret, crc32.ChecksumIEEE(secret)))
}

// Derive returns the key of a host, 32 bytes, derived from k by HKDF-SHA256 (RFC 5869).
// The salt is empty. The info is "portknock/1 host", a zero byte and the host's name in
// lower case. The derived key reveals neither k nor the key of another host.
func (k Key) Derive(host string) Key {
	secret, err := hkdf.Key(sha256.New, k.Bytes(), nil, "portknock/1 host\x00"+strings.ToLower(host), minKey)
	if err != nil {
		panic(err) // hkdf.Key fails only for a result of more than 255 hashes
	}
	return KeyFrom(secret)
}

// Fingerprint returns 16 hexadecimal digits that two users can compare in public, to see
// whether they have the same key. The digits are the start of HMAC-SHA256(key,
// "portknock/1 fingerprint"). For the zero Key, and for a secret shorter than 32 bytes,
// Fingerprint returns "". Such a secret has no fingerprint, because an attacker could use
// the fingerprint to guess the secret.
func (k Key) Fingerprint() string {
	if len(k.Bytes()) < minKey {
		return ""
	}
	return hex.EncodeToString(k.mac([]byte("portknock/1 fingerprint"))[:8])
}

// redacted is printed in place of every key.
const redacted = "[key]"

// Format writes "[key]" for every verb.
func (Key) Format(s fmt.State, _ rune) { io.WriteString(s, redacted) }

// MarshalText returns "[key]", for JSON, slog and everything else that writes values.
func (Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// check returns an error for a key that is short enough to be guessed.
func (k Key) check() error {
	switch n := len(k.Bytes()); {
	case n == 0:
		return errors.New("no key")
	case n < minKey:
		return fmt.Errorf("the key has %d bytes; at least %d are needed", n, minKey)
	}
	return nil
}

// Bytes returns a copy of the secret, or nil for the zero Key. It is for schemes that
// have their own cryptography. Only Bytes and [Key.Reveal] return the secret.
func (k Key) Bytes() []byte {
	if k.secret == nil {
		return nil
	}
	return []byte(*k.secret)
}

// mac returns the HMAC-SHA256 (RFC 2104) of a message with this key, 32 bytes.
func (k Key) mac(message []byte) []byte {
	h := hmac.New(sha256.New, k.Bytes())
	h.Write(message)
	return h.Sum(nil)
}
