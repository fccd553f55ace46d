"""The modules of a model that adapters are put on, checked before peft looks for them.

peft takes a list of which one name matches, and trains without the others; of exceptions and
patterns that match nothing it says nothing at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dslm.errors import RecipeError, Where, did_you_mean

ALL = "all-linear"
_MOST_NAMED = 12


def check_targets(model: torch.nn.Module, lora: Mapping[str, Any]) -> None:
    """Check that each name is that of a module: with a matrix, where adapters shall be put on it.

    A number in a name stands for any number.

    Args:
        model: the model without adapters.
        lora: `target_modules`, and perhaps `exclude`, `modules_to_save` and the patterns.

    Raises:
        RecipeError: names that match nothing, with the nearest ones that there are.
    """
    everything = [name for name, _ in model.named_modules() if name]
    matrices = [
        name
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) > 1
    ]
    for key, known in (("target_modules", matrices), ("exclude", matrices)):
        _check(key, lora.get(key) or (), known)
    _check("modules_to_save", lora.get("modules_to_save", ()), everything)
    for key in ("rank_pattern", "alpha_pattern"):
        _check_patterns(key, lora.get(key, {}), matrices)


def _check(key: str, wanted: str | Sequence[str], known: Sequence[str]) -> None:
    if wanted == ALL:
        return
    if isinstance(wanted, str):
        if not any(re.fullmatch(wanted, name) for name in known):
            raise _nothing(key, [wanted], known, "matches")
        return
    names = [_any_number(name) for name in known]
    wrong = [
        one
        for one in wanted
        if not any(f".{name}".endswith(f".{_any_number(one)}") for name in names)
    ]
    if wrong:
        raise _nothing(key, wrong, known, "is named")


def _check_patterns(key: str, patterns: Mapping[str, object], known: Sequence[str]) -> None:
    """Source of the rule: peft/utils/other.py, get_pattern_key."""
    wrong = [
        one for one in patterns if not any(re.fullmatch(rf"(.*\.)?({one})", name) for name in known)
    ]
    if wrong:
        raise _nothing(key, wrong, known, "matches")


def _nothing(key: str, wrong: Sequence[str], known: Sequence[str], does: str) -> RecipeError:
    ends = sorted({name.rpartition(".")[2] for name in known})
    near = [hint for name in wrong if (hint := did_you_mean(name.rpartition(".")[2], ends))]
    more = f", and {len(ends) - _MOST_NAMED} more" if len(ends) > _MOST_NAMED else ""
    return RecipeError(
        f"no module of the model {does} {' or '.join(f'`{name}`' for name in wrong)}",
        where=Where(key=f"lora.{key}"),
        hint=" ".join([*near, f"there are: {', '.join(ends[:_MOST_NAMED])}{more}"]),
    )


def _any_number(name: str) -> str:
    return re.sub(r"\d+", "0", name)
