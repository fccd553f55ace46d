"""Answers of a model on the screen, without what a terminal would obey."""

from __future__ import annotations


def in_a_line(text: str) -> str:
    """Return a text on one line, every character that can't be printed replaced."""
    return harmless(" ".join(text.split()))


def harmless(text: str) -> str:
    """Return a text of lines, every other character that can't be printed replaced."""
    kept = "\n\t"
    return "".join(
        each if each.isprintable() or each in kept else "\N{REPLACEMENT CHARACTER}" for each in text
    )
