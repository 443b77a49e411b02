"""Composition roots: the only place where things are constructed."""
