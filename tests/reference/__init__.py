"""Naive float64 references, one file per paper, written from the papers' formulas and from nothing in `mooring`."""
