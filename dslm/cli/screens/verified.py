"""The screen of a verification: what was compared, or where it differs, why, and what avoids it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dslm.run.events import Event, Phase, Verified, VerifiedDifference
from dslm.units import number_of, render_seconds

_SHOWN = 8
_A_FACTOR = 0.02  # from 1, that is more than rounding
_PACKAGES = ("torch", "deepspeed", "transformers", "accelerate")


class VerifyScreen:
    """Says the phases of a verification as lines."""

    def __init__(self, tell: object) -> None:
        self._tell = tell

    def run_made(self, run: Path) -> None:
        """Say where it is."""
        self.note(f"verifying in {run}")

    def note(self, text: str) -> None:
        """Say a line."""
        if callable(self._tell):
            self._tell(text)

    def event(self, event: Event) -> None:
        """Say a phase."""
        if isinstance(event, Phase) and event.detail:
            self.note(f"{event.phase}: {event.detail}")


def compared(found: Verified) -> str:
    """Say what was compared, in a line."""
    packages = ", ".join(f"{name} {found.versions.get(name)}" for name in _PACKAGES)
    return (
        f"{found.parameters} parameters and {number_of(found.samples, 'sample')} over "
        f"{number_of(found.steps, 'step')} on {number_of(found.ranks, 'rank')}, "
        f"ZeRO stage {found.stage}, {_sharing(found)}{found.precision} "
        f"(its own noise: {found.noise:.1e}), "
        f"with {packages}, in {render_seconds(found.seconds)}"
        + (f"; not compared: {', '.join(found.not_compared)}" if found.not_compared else "")
    )


def _sharing(found: Verified) -> str:
    """Say what ranks share, if they do."""
    sizes = (("tensor", found.tensor), ("sequence", found.sequence), ("expert", found.expert))
    return "".join(f"{name} {size}, " for name, size in sizes if size > 1)


def verified_panel(found: Verified, known: Sequence[str]) -> Panel:
    """What differs, from which step on, its cause, and what avoids it."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold")
    rows.add_column()
    for name, text in _rows(found, known):
        rows.add_row(name, Text(text))
    table = Table("what", "where", "step", "off by", "allowed", "ratio", box=None)
    for each in found.differences[:_SHOWN]:
        table.add_row(*map(Text, _cells(each)))
    more = found.found - _SHOWN
    parts = [table, Text(f"… and {more} more")] if more > 0 else [table]
    title = "the layout does not learn what one process would"
    return Panel(Group(rows, Text(""), *parts), title=title, title_align="left", border_style="red")


def _rows(found: Verified, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    first = found.differences[0]
    kinds = dict.fromkeys(each.kind for each in found.differences)
    yield "differs", f"{', '.join(kinds)}; from step {first.step} on; {found.found} in all"
    scale = _one_ratio(found.differences)
    if scale is not None and abs(scale - 1) > _A_FACTOR:
        yield "pattern", f"every gradient that differs is {scale:.4g} times what it should be"
    if found.cause:
        yield "cause", f"{found.cause}: without it nothing differs"
        yield (
            "fix",
            f"`--set {found.setting}`"
            if "=" in found.setting
            else f"change `{found.setting}` in the recipe",
        )
    elif found.tried:
        tried = f" (tried without {', '.join(found.tried)})"
        yield (
            "cause",
            f"none of the layout's options{tried}: the model, its loss, the data or the optimizer",
        )
    else:
        yield "cause", "not found: nothing could be switched, or not in time"
    for text in known:
        yield "known", text
    yield "compared", compared(found)


def _one_ratio(differences: Sequence[VerifiedDifference]) -> float | None:
    """The factor that all gradients share, where they do."""
    ratios = [each.ratio for each in differences if each.kind == "gradient"]
    first = ratios[0] if ratios else None
    if first is None or any(r is None or abs(r - first) > 0.02 * abs(first) for r in ratios):
        return None
    return first


def _cells(each: VerifiedDifference) -> tuple[str, ...]:
    far = "wholly" if each.deviation >= 1e29 else f"{each.deviation:.1e}"
    ratio = "" if each.ratio is None else f"{each.ratio:.4g}"
    return each.kind, each.name, str(each.step), far, f"{each.allowed:.1e}", ratio
