"""What a wrong key was meant to be: the nearest one of its section, or another tool's word for one.

Names in, a sentence out; knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence

from dslm.errors import did_you_mean


def hint_for(key: str, known: Sequence[str]) -> str:
    """The hint for a key that a recipe doesn't have."""
    parent, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    near = did_you_mean(name, siblings)
    if near:
        return near.replace(near.split("`")[1], siblings[near.split("`")[1]])
    elsewhere = {k.rpartition(".")[2]: k for k in known}
    near = did_you_mean(name, elsewhere)
    if near:
        return near.replace(near.split("`")[1], elsewhere[near.split("`")[1]])
    return f"known here: {', '.join(siblings)}" if siblings else ""
