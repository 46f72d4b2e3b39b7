module lattice.example/sort

go 1.24
