"""Screens of the verbs: a value in, something for the terminal out. No verb, no option."""
