"""Answers of a model on the screen: in one line, and without what a terminal would obey."""

from __future__ import annotations


def in_a_line(text: str) -> str:
    """Return a text on one line, every character that can't be printed replaced."""
    letters = " ".join(text.split())
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in letters)
