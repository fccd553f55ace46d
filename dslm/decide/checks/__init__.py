"""Checks before anything starts: one list, as data, for every verb."""
