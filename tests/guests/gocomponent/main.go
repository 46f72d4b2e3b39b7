// A component: it exports lattice:sums/sums. Its bindings, under gen, are made by wit-bindgen-go.
package main

import "lattice.example/sums/gen/lattice/sums/sums"

func init() {
	sums.Exports.Add = func(a, b uint32) uint32 { return a + b }
	sums.Exports.Primes = primes
}

// How many there are below n.
func primes(n uint32) (count uint32) {
	crossed := make([]bool, n)
	for i := uint32(2); i < n; i++ {
		if crossed[i] {
			continue
		}
		count++
		for j := 2 * i; j < n; j += i {
			crossed[j] = true
		}
	}
	return count
}

func main() {}
