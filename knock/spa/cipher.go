package spa

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/rand"
	"slices"
)

// Mode is the mode of the cipher.
type Mode uint8

// The modes that fwknopd supports. CBC is its default, and its manual recommends to keep the
// default. ECB, CFB, OFB and CTR are for servers whose ENCRYPTION_MODE already names one of
// them. Legacy is CBC for servers before version 2.5. Such a server cuts a longer key to 16
// bytes, or pads a shorter key to 16 bytes. It does not support an HMAC.
const (
	CBC Mode = iota
	ECB
	CFB
	OFB
	CTR
	Legacy
)

func (Mode) names() []string { return []string{"cbc", "ecb", "cfb", "ofb", "ctr", "legacy"} }

// String returns the name of the mode in lower case.
func (m Mode) String() string { return nameOf(m) }

// OpenSSL puts the text salted before a salt. In base64, every packet would therefore begin
// with saltedText. fwknop leaves saltedText out.
const (
	salted     = "Salted__"
	saltedText = "U2FsdGVkX1"
)

// seal encrypts the text plain and returns base64, including saltedText.
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

// derive makes a key and an IV like OpenSSL's EVP_BytesToKey, with MD5 and one round.
func derive(passphrase, salt []byte) (key, iv []byte) {
	var out, last []byte
	for len(out) < 32+aes.BlockSize {
		sum := md5.Sum(slices.Concat(last, passphrase, salt))
		last = sum[:]
		out = append(out, last...)
	}
	return out[:32], out[32:]
}

// pad appends 1 to 16 bytes. The value of each byte is the number of appended bytes
// (RFC 5652, section 6.3).
func pad(text []byte) []byte {
	n := aes.BlockSize - len(text)%aes.BlockSize
	return append(text, bytes.Repeat([]byte{byte(n)}, n)...)
}

// encrypt encrypts text in place. The text must have whole blocks.
func (m Mode) encrypt(text, key, iv []byte) {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // aes.NewCipher fails only for a key of another length
	}
	switch m {
	case CBC, Legacy:
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(text, text)
	case ECB: // package cipher does not have this mode
		for b := range slices.Chunk(text, aes.BlockSize) {
			block.Encrypt(b, b)
		}
	case CFB:
		//lint:ignore SA1019 new programs should not use this mode, but fwknop does
		cipher.NewCFBEncrypter(block, iv).XORKeyStream(text, text)
	case OFB:
		//lint:ignore SA1019 new programs should not use this mode, but fwknop does
		cipher.NewOFB(block, iv).XORKeyStream(text, text)
	case CTR:
		cipher.NewCTR(block, iv).XORKeyStream(text, text)
	}
}
