// A program of WASI preview 1: it sorts the lines of its input.
package main

import (
	"bufio"
	"fmt"
	"os"
	"sort"
)

func main() {
	var lines []string
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		lines = append(lines, input.Text())
	}
	if err := input.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	sort.Strings(lines)
	for _, line := range lines {
		fmt.Println(line)
	}
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, os.Args[1:])
		os.Exit(len(os.Args))
	}
}
