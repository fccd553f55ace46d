"""Can what a recipe names on the Hub be had on this machine? `python -m …hub_reach`, no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dslm.recipe.hub_names import TOKENIZER_FILES, HubName, Kind
from dslm.worker.answer import Tell, answer
from dslm.worker.hub import not_in_cache, only_earlier, why_out_of_reach

# each shows that the rest of its kind is there too
_FILES = {
    Kind.MODEL: (
        "model.safetensors", "model.safetensors.index.json",
        "pytorch_model.bin", "pytorch_model.bin.index.json",
    ),
    Kind.TOKENIZER: TOKENIZER_FILES,
}  # fmt: skip


def work(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Return a remark for each name whose files are neither here nor to be fetched.

    One remark where all were downloaded earlier, none where the Hub can be reached.
    """
    tell("looking for the Hub")
    why = why_out_of_reach(tell)
    if why is None:
        return {"remarks": []}
    names = [HubName(**{**name, "kind": Kind(name["kind"])}) for name in request["names"]]
    missing: dict[str, list[str]] = {}
    for wanted in names:
        if not _in_cache(wanted):
            missing.setdefault(wanted.name, []).append(wanted.kind)
    remarks = [
        not_in_cache(f"`{name}` ({', '.join(kinds)})", why) for name, kinds in missing.items()
    ]
    return {"remarks": remarks or [only_earlier(why)]}


def _in_cache(wanted: HubName) -> bool:
    """Return whether an earlier download is kept; of a data set, the tables made from it."""
    from huggingface_hub import try_to_load_from_cache

    if wanted.kind == Kind.DATA:
        # datasets/load.py, CachedDatasetModuleFactory: all that is looked at without the Hub
        from datasets import config
        from datasets.naming import camelcase_to_snakecase

        *owner, name = wanted.name.split("/")
        folder = "___".join([*owner, camelcase_to_snakecase(name)])
        return any(Path(config.HF_DATASETS_CACHE).expanduser().glob(f"{folder}/*/*/*/"))
    kept = (
        try_to_load_from_cache(wanted.name, file, revision=wanted.revision)
        for file in _FILES[wanted.kind]
    )
    return any(isinstance(path, str) for path in kept)


if __name__ == "__main__":
    answer(work)
