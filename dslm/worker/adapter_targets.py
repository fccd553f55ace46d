"""The modules of a model that adapters are put on, checked before peft looks for them.

peft takes a list of which one name matches, and trains without the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from dslm.errors import RecipeError, Where, did_you_mean

KEY = "lora.target_modules"
_MOST_NAMED = 12


def check_targets(model: torch.nn.Module, targets: str | Sequence[str]) -> None:
    """Check that each name is that of a module with a matrix; `all-linear` always is.

    A number in a name stands for any number: a model that is traced has fewer layers.

    Raises:
        RecipeError: names that match nothing, with the nearest ones that there are.
    """
    if isinstance(targets, str):
        return
    names = [
        _any_number(name)
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) > 1
    ]
    ends = {name.rpartition(".")[2] for name in names}
    wrong = [
        target
        for target in targets
        if not any(f".{name}".endswith(f".{_any_number(target)}") for name in names)
    ]
    if not wrong:
        return
    near = [hint for name in wrong if (hint := did_you_mean(name.rpartition(".")[2], ends))]
    listed = sorted(ends)
    more = f", and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    raise RecipeError(
        f"no module of the model is named {' or '.join(f'`{name}`' for name in wrong)}",
        where=Where(key=KEY),
        hint=" ".join([*near, f"there are: {', '.join(listed[:_MOST_NAMED])}{more}"]),
    )


def _any_number(name: str) -> str:
    return re.sub(r"\d+", "0", name)
