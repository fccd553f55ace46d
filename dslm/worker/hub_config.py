"""Fetch a model's config.json from the Hub, and nothing else of it: `python -m …hub_config`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dslm import environment
from dslm.errors import RecipeError, Where
from dslm.worker.answer import Tell, answer
from dslm.worker.hub import OUT_OF_REACH, not_in_cache, why_out_of_reach


def work(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Return the config of a model by its name and revision.

    Raises:
        RecipeError: the Hub can't be asked, or has no such model.
    """
    name = request["name"]
    tell(f"asking the Hub for the config of {name}")
    why = why_out_of_reach(tell)
    if why is not None:  # else it would try again and again
        os.environ[environment.HUB_OFFLINE] = "1"
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    where = Where(key="model.name")
    try:
        file = hf_hub_download(name, "config.json", revision=request["revision"])
    except LocalEntryNotFoundError as failure:
        raise RecipeError(
            not_in_cache(f"the config of `{name}`", why or OUT_OF_REACH),
            where=where,
            hint="plan a folder or a config.json, or name the sizes in `model.architecture`",
        ) from failure
    except (HfHubHTTPError, HFValidationError, OSError) as failure:
        raise RecipeError(
            f"the config of `{name}` can't be loaded: {str(failure).strip().splitlines()[0]}",
            where=where,
            hint="is the name right, and is `hf auth login` needed?",
        ) from failure
    return {"config": json.loads(Path(file).read_text(encoding="utf-8"))}


if __name__ == "__main__":
    answer(work)
