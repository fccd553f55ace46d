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

from dslm.ask.profile import profile_request
from dslm.profile.store import PRESETS, SHIPPED, key_of, stored
from dslm.profile.value import to_document
from dslm.recipe.catalog import entries
from dslm.recipe.load import load_recipe

_DATE = (1980, 1, 1, 0, 0, 0)  # the same archive whenever it is made


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """The preset and request of every profile that ships."""
    for preset in entries():
        if preset.architecture:
            recipe = load_recipe(preset.name).recipe
            for on_cpu in (False, True):
                yield preset.name, profile_request(recipe, preset.architecture, on_cpu=on_cpu)


def missing() -> list[str]:
    """Presets of which a profile isn't there."""
    return sorted({name for name, request in requests() if stored(request, cache=False) is None})


def archive() -> bytes:
    """Trace what isn't there yet, and pack all of it."""
    from dslm.worker.trace.profile import profile

    warnings.simplefilter("ignore")
    members: dict[str, str] = {}
    parameters: dict[str, int] = {}
    done: dict[str, bool] = {}  # whether what was traced for an accelerator has dropout
    for name, request in requests():
        if request["device"] == "cpu" and not done[name]:
            continue
        found = stored(request, cache=False)
        if found is None:
            print(name, request["device"], flush=True)
            found = profile(request)
        done[name] = found.drops
        if found.why:
            raise SystemExit(f"{name} can't be traced: {found.why}")
        parameters[name] = found.total
        members[key_of(request)] = json.dumps(to_document(found), separators=(",", ":"))
    members[PRESETS] = json.dumps(parameters)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(info, members[name])
    return stream.getvalue()


def main() -> int:
    """Write the archive, or check that it is complete."""
    if "--check" in sys.argv[1:]:
        if absent := missing():
            print(f"no profile of {', '.join(absent)}: run `make profiles`", file=sys.stderr)
        return 1 if absent else 0
    if "--all" in sys.argv[1:]:
        SHIPPED.unlink(missing_ok=True)
    SHIPPED.write_bytes(archive())
    print(f"{SHIPPED.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
