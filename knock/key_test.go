package knock

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// exampleKey is the text of the key with the bytes 0 to 31.
const exampleKey = "portknock-key-1:aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypzcjt6ri"

func mustKey(t testing.TB, text string) Key {
	t.Helper()
	k, err := ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyTextIsReadBack(t *testing.T) {
	k := mustKey(t, exampleKey)
	if got, want := hex.EncodeToString(k.Bytes()), "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := k.Reveal(); got != exampleKey {
		t.Errorf("got %s, want %s", got, exampleKey)
	}
	mustKey(t, " "+strings.ToUpper(exampleKey)+"\r\n")
	for n := minKey; n <= maxKey; n++ {
		k := KeyFrom(bytes.Repeat([]byte{0xa7}, n))
		if got := mustKey(t, k.Reveal()); !bytes.Equal(got.Bytes(), k.Bytes()) {
			t.Errorf("a key of %d bytes is not read back", n)
		}
	}
	a, b := NewKey(), NewKey()
	if len(a.Bytes()) != 32 || bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("a new key does not have 32 new bytes")
	}
}

func TestParseKeyNamesTheFault(t *testing.T) {
	body := strings.TrimPrefix(exampleKey, keyPrefix)
	for _, tt := range []struct{ name, text, want string }{
		{"empty text", "", `not a key: it does not begin with "portknock-key-1:"`},
		{"ssh private key", "-----BEGIN OPENSSH PRIVATE KEY-----\n" + body, `not a key: it does not begin with "portknock-key-1:"`},
		{"prefix missing", body, `not a key: it does not begin with "portknock-key-1:"`},
		{"later version", keyKind + "2:" + body, `the key has another version; this program's keys begin with "portknock-key-1:"`},
		{"last letter missing", exampleKey[:len(exampleKey)-1], "the key is truncated; its end is missing"},
		{"only the prefix", keyPrefix, "the key is truncated; its end is missing"},
		{"digit 1, not in the alphabet", exampleKey[:30] + "1" + exampleKey[31:], "the key is mistyped; only letters and the digits 2 to 7 are allowed"},
		{"line end inside", exampleKey[:30] + "\n" + exampleKey[30:], "the key is mistyped; only letters and the digits 2 to 7 are allowed"},
		{"bits after the last byte", exampleKey[:len(exampleKey)-1] + "j", "the key is mistyped or truncated; its end is wrong"},
		{"digits repeated", exampleKey + body, "the key is too long; remove the text after its end"},
		{"digits added", exampleKey + "bcdefg", "the key is mistyped or truncated; its checksum is wrong"},
	} {
		_, err := ParseKey(tt.text)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
	// Only the checksum detects that a longer key was cut.
	long := KeyFrom(make([]byte, maxKey)).Reveal()
	if _, err := ParseKey(long[:len(long)-8]); err == nil {
		t.Error("a truncated key is accepted")
	}
}

// The checksum detects every single wrong letter and every swap of neighboring letters, at
// every position.
func TestChecksumDetectsTypos(t *testing.T) {
	for i := len(keyPrefix); i < len(exampleKey); i++ {
		for _, c := range "abcdefghijklmnopqrstuvwxyz234567" {
			typo := exampleKey[:i] + string(c) + exampleKey[i+1:]
			if _, err := ParseKey(typo); err == nil && typo != exampleKey {
				t.Errorf("the letter %q in place of %q at position %d is not detected", c, exampleKey[i], i)
			}
		}
		if i > len(keyPrefix) && exampleKey[i] != exampleKey[i-1] {
			swapped := exampleKey[:i-1] + string(exampleKey[i]) + string(exampleKey[i-1]) + exampleKey[i+1:]
			if _, err := ParseKey(swapped); err == nil {
				t.Errorf("a swap at position %d is not detected", i)
			}
		}
	}
}

func TestKeyIsNeverPrinted(t *testing.T) {
	k := KeyFrom([]byte("0123456789abcdef0123456789abcdef"))
	type nested struct {
		Key     Key
		Pointer *Key
		Map     map[string]Key
		hidden  Key // fmt does not call the methods of an unexported field, and prints its fields
	}
	n := nested{k, &k, map[string]Key{"k": k}, k}
	values := []any{k, &k, n, &n, []Key{k}, Rotating{Key: k}, MD5Hourly{Secret: k}, n.hidden}
	var out bytes.Buffer
	for _, verb := range "vTtbcdoOqxXUeEfFgGsp" {
		for _, flags := range []string{"%", "%+", "%#", "% ", "%0", "%-9", "%.3"} {
			for _, v := range values {
				fmt.Fprintf(&out, flags+string(verb)+"\n", v)
			}
		}
	}
	if got := fmt.Sprintf("%v %s %x %q %#v %+v %d", k, k, k, k, k, &k, k); got != "[key] [key] [key] [key] [key] [key] [key]" {
		t.Errorf("got %s", got)
	}
	for _, v := range values {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(text)
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			slog.New(h).Info("key", "key", v)
		}
	}
	if got, err := json.Marshal(map[string]Key{"a": k}); err != nil || string(got) != `{"a":"[key]"}` {
		t.Errorf("JSON: %s, %v", got, err)
	}
	for _, secret := range []string{
		"0123456789abcdef", hex.EncodeToString(k.Bytes()), strings.ToUpper(hex.EncodeToString(k.Bytes())),
		"48 49 50", "48, 49, 50", "0x30, 0x31", "MDEyMzQ1", strings.TrimPrefix(k.Reveal(), keyPrefix)[:10],
	} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the output contains the secret as %q", secret)
		}
	}
}

func TestDeriveGivesEachHostAKey(t *testing.T) {
	k := mustKey(t, exampleKey)
	a := k.Derive("vps")
	if !bytes.Equal(a.Bytes(), k.Derive("VPS").Bytes()) {
		t.Error("names of different case have different keys")
	}
	if bytes.Equal(a.Bytes(), k.Derive("web").Bytes()) || bytes.Equal(a.Bytes(), k.Bytes()) {
		t.Error("two hosts, or a host and the master key, have the same key")
	}
}

func TestOnlyLongKeysHaveAFingerprint(t *testing.T) {
	if got, want := mustKey(t, exampleKey).Fingerprint(), "3435151bd68dab7b"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := KeyFrom([]byte("f00b4r")).Fingerprint(); got != "" {
		t.Errorf("a secret that is short enough to be guessed has the fingerprint %s", got)
	}
	if got := (Key{}).Fingerprint(); got != "" {
		t.Errorf("the zero Key has the fingerprint %s", got)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(exampleKey)
	f.Add(strings.ToUpper(exampleKey) + "\n")
	f.Add(exampleKey[:40])
	f.Add(keyPrefix)
	f.Fuzz(func(t *testing.T, text string) {
		k, err := ParseKey(text)
		if err != nil {
			if len(text) > 20 && strings.Contains(err.Error(), strings.TrimPrefix(text, keyPrefix)) {
				t.Fatalf("the error %q quotes the key", err)
			}
			return
		}
		if got := k.Reveal(); got != strings.ToLower(strings.TrimSpace(text)) {
			t.Fatalf("ParseKey(%q).Reveal() = %q", text, got)
		}
	})
}
