package knock

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"
)

// tokenVector is an example of the scheme token. Vectors never change, because servers
// accept these tokens.
type tokenVector struct {
	About  string
	Key    string
	Host   string // if not empty, the key of this host is derived from Key
	Time   int64  // Unix time in seconds
	Period int64  // length of a window in seconds
	N      int    // number of the token in its window
	Token  string // token in hexadecimal
}

const tokenVectorFile = "../testdata/vectors/token.json"

func tokenVectors(t *testing.T) (all []tokenVector) {
	t.Helper()
	text, err := os.ReadFile(tokenVectorFile)
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil || len(all) < 20 {
		t.Fatalf("got %d vectors, error %v; want at least 20", len(all), err)
	}
	return all
}

func TestTokenMatchesVectors(t *testing.T) {
	for _, v := range tokenVectors(t) {
		key := mustKey(t, v.Key)
		if v.Host != "" {
			key = key.Derive(v.Host)
		}
		k := Token{Key: key, Port: 62202, Period: time.Duration(v.Period) * time.Second, Tokens: v.N + 1}
		// The tokens stay the same for a whole second.
		for _, now := range []time.Time{time.Unix(v.Time, 0), time.Unix(v.Time, 999_999_999)} {
			seqs, w, err := k.At(now)
			if err != nil || len(seqs) != v.N+1 || seqs[v.N].String() != "62202/udp="+v.Token {
				t.Errorf("%+v:\ngot tokens %v, error %v", v, seqs, err)
			}
			if w != WindowAt(now, k.Period) {
				t.Errorf("%+v:\ngot the wrong window %v", v, w)
			}
		}
	}
}

// TestPythonMatchesTokenVectors compares the Python in testdata/vectors with the vectors.
func TestPythonMatchesTokenVectors(t *testing.T) {
	var want []string
	for _, v := range tokenVectors(t) {
		want = append(want, v.Token)
	}
	if got := pythonOutput(t, tokenVectorFile); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func exampleToken(t testing.TB) Token {
	return Token{Key: mustKey(t, exampleKey), Port: 62202, Period: time.Hour, Tokens: 8}
}

// No token repeats, neither in a window nor in another window.
func TestTokensDiffer(t *testing.T) {
	seen := map[string]bool{}
	k := exampleToken(t)
	k.Tokens = MaxTokens
	for n := range 100 {
		seqs, _, err := k.At(time.Unix(int64(n)*3600+1800, 0))
		if err != nil || len(seqs) != MaxTokens {
			t.Fatal(len(seqs), err)
		}
		for _, seq := range seqs {
			if len(seq) != 1 || seq[0].Transport != UDP || seq[0].Port != k.Port || len(seq[0].Payload) != TokenSize {
				t.Fatalf("%v is not one UDP knock with a token of 16 bytes", seq)
			}
			s := hex.EncodeToString(seq[0].Payload)
			if seen[s] {
				t.Fatalf("window %d: the token %s repeats", n, s)
			}
			seen[s] = true
		}
	}
}

func TestTokenChecksItsFields(t *testing.T) {
	for _, tt := range []struct {
		change func(*Token)
		want   string
	}{
		{func(k *Token) { k.Key = Key{} }, "no key"},
		{func(k *Token) { k.Key = KeyFrom(make([]byte, 31)) }, "the key has 31 bytes; at least 32 are needed"},
		{func(k *Token) { k.Period = 0 }, "the Period (0s) must be whole seconds, at least 1s"},
		{func(k *Token) { k.Period = 1500 * time.Millisecond }, "the Period (1.5s) must be whole seconds, at least 1s"},
		{func(k *Token) { k.Port = 0 }, "no port to send a token to"},
		{func(k *Token) { k.Tokens = 0 }, "0 tokens: expected 1 to 64"},
		{func(k *Token) { k.Tokens = 65 }, "65 tokens: expected 1 to 64"},
	} {
		k := exampleToken(t)
		tt.change(&k)
		if seqs, _, err := k.At(time.Now()); err == nil || err.Error() != tt.want || seqs != nil {
			t.Errorf("got tokens %v, error %v; want the error %s", seqs, err, tt.want)
		}
	}
}
