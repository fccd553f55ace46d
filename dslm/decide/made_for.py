"""The device and the ranks that a DeepSpeed config was made for, kept in the config itself.

DeepSpeed reads no key at the top level that it doesn't know, and the linter takes one that begins
with `_` for a remark; so the mark goes along wherever the file goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dslm.cluster.hosts import Cluster
from dslm.errors import InputError
from dslm.zero.read import read_config

MARK = "_made_for"
_OPTIONS = ("--deepspeed", "--deepspeed_config", "--deepspeed-config")


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeFor:
    """The devices of a config, by name and number."""

    device: str
    ranks: int

    def __str__(self) -> str:
        return f"{self.ranks} × {self.device}"


def made_for(cluster: Cluster) -> MadeFor:
    """Return the mark of a config for a cluster."""
    return MadeFor(device=cluster.device.name, ranks=cluster.world_size)


def marked(values: Mapping[str, object], mark: MadeFor) -> dict[str, object]:
    """Return a config with its mark."""
    return {MARK: {"device": mark.device, "ranks": mark.ranks}, **values}


def mark_of(values: Mapping[str, object]) -> MadeFor | None:
    """Return the mark of a config; None where it has none that can be read."""
    match values.get(MARK):
        case {"device": str(device), "ranks": int(ranks)}:
            return MadeFor(device=device, ranks=ranks)
    return None


def made_for_others(arguments: Sequence[str], cluster: Cluster) -> str:
    """Say of a config that a script is given if it was made for other devices; "" if not."""
    words = [part for word in arguments for part in word.split("=", 1)]
    for option, file in pairwise(words):
        if option in _OPTIONS and Path(file).is_file():
            try:
                mark = mark_of(read_config(Path(file)).values)
            except InputError:
                return ""  # the script says what is wrong with it
            here = made_for(cluster)
            if mark is not None and mark != here:
                return f"{file} was made for {mark}, and these are {here}: `dslm config` makes one"
    return ""
