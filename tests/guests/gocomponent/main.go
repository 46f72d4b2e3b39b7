// A component: it exports lattice:sums/sums and lattice:sums/words. Its bindings, under gen, are made by wit-bindgen-go.
package main

import (
	"slices"
	"strings"
	"unsafe"

	"go.bytecodealliance.org/cm"
	"lattice.example/sums/gen/lattice/sums/sums"
	"lattice.example/sums/gen/lattice/sums/words"
)

func init() {
	sums.Exports.Add = func(a, b uint32) uint32 { return a + b }
	sums.Exports.Primes = primes
	words.Exports.Upper = strings.ToUpper
	words.Exports.Counts = counts
	words.Exports.Reversed = reversed
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

func counts(texts cm.List[string]) cm.List[words.Count] {
	times := map[string]uint32{}
	for _, text := range texts.Slice() {
		for _, word := range strings.Fields(text) {
			times[word]++
		}
	}
	var all []words.Count
	for word, n := range times {
		all = append(all, words.Count{Word: word, Times: n})
	}
	slices.SortFunc(all, func(a, b words.Count) int {
		if a.Times != b.Times {
			return int(b.Times) - int(a.Times)
		}
		return strings.Compare(a.Word, b.Word)
	})
	return cm.ToList(all)
}

type Reversed = cm.Result[cm.List[uint8], cm.List[uint8], string]

func reversed(bytes cm.List[uint8]) Reversed {
	if bytes.Len() == 0 {
		return cm.Err[Reversed]("there are none")
	}
	all := slices.Clone(bytes.Slice())
	slices.Reverse(all)
	return cm.OK[Reversed](cm.ToList(all))
}

// What the caller has laid into this memory: nothing else here refers to it until the function that it is for begins.
var held [][]uint64

// Strings and lists of the caller come through it; Go's own compiler exports none.
//
//go:wasmexport cabi_realloc
func realloc(old unsafe.Pointer, oldSize, align, size uint32) unsafe.Pointer {
	words := make([]uint64, size/8+1)
	held = append(held, words)
	at := unsafe.Pointer(unsafe.SliceData(words))
	if oldSize > 0 {
		copy(unsafe.Slice((*byte)(at), size), unsafe.Slice((*byte)(old), oldSize))
	}
	return at
}

func main() {}
