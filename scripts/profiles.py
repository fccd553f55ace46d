"""`make profiles`: trace every preset for the archive that ships with dslm.

With `--check` nothing is traced: every preset must have its profile, of its present sizes.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

from dslm.ask.measure import PRECISIONS, profile_requests
from dslm.ask.profile import profile_request
from dslm.profile.store import PRESETS, SHIPPED, key_of, stored
from dslm.profile.value import Profile, to_document
from dslm.recipe.catalog import entries, put_on
from dslm.recipe.load import load_recipe

# beside the presets: what a page of the docs plans
OTHERS = (("llama-3.1-8b-instruct", ("lora",)),)
_DATE = (1980, 1, 1, 0, 0, 0)  # the same archive whenever it is made


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """The preset and request of every profile that ships; no preset for what `doctor` measures."""
    for preset in entries():
        if preset.architecture:
            recipe = load_recipe(preset.name).recipe
            for on_cpu in (False, True):
                yield preset.name, profile_request(recipe, preset.architecture, on_cpu=on_cpu)
    for name, with_ in OTHERS:
        recipe = load_recipe(name, put_on(with_)).recipe
        yield "", profile_request(recipe, recipe.model.architecture, on_cpu=False)
    for cuda, precisions in PRECISIONS.items():
        for request in profile_requests(precisions, cuda=cuda):
            yield "", request


def missing() -> list[str]:
    """Presets of which a profile isn't there."""
    absent = {name for name, request in requests() if stored(request, cache=False) is None}
    return sorted(name or "what `dslm doctor --measure` runs" for name in absent)


def make() -> None:
    """Trace what isn't there yet, and pack all of it; after each trace, so that none is lost."""
    from dslm.worker.trace.profile import profile

    warnings.simplefilter("ignore")
    wanted = list(requests())
    found = {
        key_of(request): one
        for _, request in wanted
        if (one := stored(request, cache=False)) is not None
    }
    SHIPPED.write_bytes(packed(wanted, found))
    failed: list[str] = []
    for name, request in wanted:
        of_accelerator = found.get(key_of({**request, "device": "accelerator"}))
        same = of_accelerator is not None and of_accelerator.of_any_device
        if key_of(request) in found or same:
            continue
        print(name or request["architecture"]["model_type"], request["device"], flush=True)
        one = profile(request)
        if one.why:
            failed.append(f"{name} can't be traced: {one.why}")
            continue
        found[key_of(request)] = one
        SHIPPED.write_bytes(packed(wanted, found))
    if failed:
        raise SystemExit("\n".join(failed))


def packed(wanted: list[tuple[str, dict[str, Any]]], found: dict[str, Profile]) -> bytes:
    """Return the archive of what was found of what is wanted."""
    members: dict[str, str] = {}
    parameters: dict[str, int] = {}
    for name, request in wanted:
        one = found.get(key_of(request))
        if one is not None:
            members[key_of(request)] = json.dumps(to_document(one), separators=(",", ":"))
            parameters |= {name: one.total} if name else {}
    members[PRESETS] = json.dumps(parameters)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, members[name])
    return stream.getvalue()


def main() -> int:
    """Write the archive, or check that it is complete."""
    if "--check" in sys.argv[1:]:
        if absent := missing():
            print(f"no profile of {', '.join(absent)}: run `make profiles`", file=sys.stderr)
        return 1 if absent else 0
    if "--all" in sys.argv[1:]:
        SHIPPED.unlink(missing_ok=True)
    make()
    print(f"{SHIPPED.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
