// Package typo guesses which word a user meant.
package typo

import "strings"

// Hint returns the end of an error about an unknown word: "; did you mean X?", where X is the
// known word that is most like it. It returns "" if no known word is like it. Case does not
// matter.
func Hint(word string, known ...string) string {
	best, least := "", 3
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < least && 2*d <= len(word) {
			best, least = k, d
		}
	}
	if best == "" {
		best = completion(word, known)
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// completion returns the known word that begins with word. It returns "" if several do.
func completion(word string, known []string) (found string) {
	for _, k := range known {
		if len(word) < 2 || len(k) < len(word) || !strings.EqualFold(k[:len(word)], word) {
			continue
		}
		if found != "" {
			return ""
		}
		found = k
	}
	return found
}

// distance returns the Levenshtein distance between a and b, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
