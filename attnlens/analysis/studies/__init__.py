"""Studies: models × data × methods × seeds, trained, measured and held against each other."""
