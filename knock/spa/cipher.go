package spa

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/rand"
	"slices"
)

// Mode is how the cipher is used.
type Mode uint8

// The modes that fwknopd knows: CBC, what it takes by default; older ones; and
// Legacy, which is CBC for servers before 2.5, whose keys are cut or padded to
// 16 bytes and which know no HMAC.
const (
	CBC Mode = iota
	ECB
	CFB
	OFB
	CTR
	Legacy
)

func (Mode) names() []string { return []string{"cbc", "ecb", "cfb", "ofb", "ctr", "legacy"} }

// String returns the mode's name in lower case.
func (m Mode) String() string { return nameOf(m) }

// What OpenSSL puts before a salt, and how each packet would begin; fwknop leaves
// out the latter.
const (
	salted     = "Salted__"
	saltedText = "U2FsdGVkX1"
)

// seal encrypts a text and returns it as base64.
func (r *Request) seal(plain string) string {
	var salt [8]byte
	rand.Read(salt[:])
	passphrase := r.Key.Bytes()
	if r.Mode == Legacy {
		passphrase = append(passphrase, bytes.Repeat([]byte("0"), 16)...)[:16]
	}
	key, iv := derive(passphrase, salt[:])
	text := pad([]byte(plain))
	r.Mode.encrypt(text, key, iv)
	return b64(slices.Concat([]byte(salted), salt[:], text))
}

// derive is OpenSSL's EVP_BytesToKey with MD5 and one round.
func derive(passphrase, salt []byte) (key, iv []byte) {
	var out, last []byte
	for len(out) < 32+aes.BlockSize {
		sum := md5.Sum(slices.Concat(last, passphrase, salt))
		last = sum[:]
		out = append(out, last...)
	}
	return out[:32], out[32:]
}

// pad adds 1 to 16 bytes, each of which says how many (RFC 5652, section 6.3).
func pad(text []byte) []byte {
	n := aes.BlockSize - len(text)%aes.BlockSize
	return append(text, bytes.Repeat([]byte{byte(n)}, n)...)
}

// encrypt encrypts whole blocks in place.
func (m Mode) encrypt(text, key, iv []byte) {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for other lengths of keys
	}
	switch m {
	case CBC, Legacy:
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(text, text)
	case ECB: // package cipher has none
		for b := range slices.Chunk(text, aes.BlockSize) {
			block.Encrypt(b, b)
		}
	case CFB:
		//lint:ignore SA1019 new programs should not use it, but fwknop does
		cipher.NewCFBEncrypter(block, iv).XORKeyStream(text, text)
	case OFB:
		//lint:ignore SA1019 new programs should not use it, but fwknop does
		cipher.NewOFB(block, iv).XORKeyStream(text, text)
	case CTR:
		cipher.NewCTR(block, iv).XORKeyStream(text, text)
	}
}
