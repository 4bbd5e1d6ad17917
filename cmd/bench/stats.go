package main

import (
	"math"
	"slices"
)

// quantile returns the value below which a share q of the values lies, by nearest rank.
// It returns NaN if values is empty, else an element of values.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// median returns the quantile 0.5. For an even number of values, it returns the mean of
// the two values in the middle.
func median(values []float64) float64 {
	if n := len(values); n > 0 && n%2 == 0 {
		sorted := slices.Sorted(slices.Values(values))
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return quantile(values, 0.5)
}
