"""Fuzzers of everything that dslm reads and somebody else may have written."""
