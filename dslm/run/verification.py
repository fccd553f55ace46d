"""What was verified of a run's layout: `verified.json`, which `dslm verify` writes."""

from __future__ import annotations

from dslm.codec import Malformed, line_of, read_object
from dslm.run.directory import RunDirectory
from dslm.run.events import Verified, parse_event


def verified_of(run: RunDirectory) -> Verified | None:
    """Return what was found; None: nothing was verified, or the file can't be read."""
    try:
        kept = read_object(run.verified.read_text(encoding="utf-8"))
        found = parse_event(line_of({k: v for k, v in kept.items() if k != "format"}))
    except (OSError, Malformed):
        return None
    return found if isinstance(found, Verified) else None


def difference(found: Verified) -> str:
    """Say of a layout that differs what is different."""
    first = found.differences[0] if found.differences else None
    what = f"{first.kind} of {first.name} from step {first.step} on" if first else "it differs"
    return f"it does not learn what one process would: {what}"
