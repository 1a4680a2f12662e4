"""Weights in the formats of other projects: one file per upstream, and one way to read them."""
