"""docs/matrix.md, from what `make matrix` found: what works with what, and the resume table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks import resumes
from dslm.decide import matrix as found_of
from dslm.decide.axes import DEVICES, FAMILIES, PRECISIONS, RANKS, ROWS, STAGES, cells
from dslm.decide.matrix import Matrix, Outcome, Result, Spread

_SIGN = {Result.OK: "✓", Result.REFUSED: "–", Result.FAILED: "✗", Result.UNPROVEN: "?"}
_NAMES = {"cpu": "CPU", "cuda": "CUDA"}


def page() -> str:
    """The whole page."""
    matrix = found_of.recorded()
    with_ = ", ".join(f"{name} {release}" for name, release in matrix.versions.items())
    lines = [
        "# What works with what\n",
        "Made by `make matrix`, which trains three steps of a small model of each family on "
        f"{RANKS} ranks in every cell that no check\nrefuses; nothing here is typed. Last run on "
        f"{matrix.made}, with {with_}.\n",
        "`dslm train` refuses what failed here where the same versions are installed and several "
        "ranks train\n(`--set guards.on_trouble=warn` tries it all the same); `dslm recipes show "
        "MODEL --json` has what is known of a model.\n",
        f"In a cell: the ZeRO stages with {' and '.join(PRECISIONS)}; ✓ it trains, – a check "
        "refuses it before anything starts, ✗ it fails,\n? nobody has tried. One sign alone is of "
        "all stages and formats.\n",
    ]
    for device in DEVICES:
        lines += _device(matrix, device)
    return "\n".join([*lines, *_resumes()]) + "\n"


def _device(matrix: Matrix, device: str) -> Iterator[str]:
    results = [matrix.at(cell).result for cell in cells() if cell.device == device]
    counts = ", ".join(f"{results.count(each)} {each}" for each in Result if each in results)
    yield f"## {_NAMES[device]}\n"
    yield f"{len(results)} cells: {counts}.\n"
    reasons: list[Outcome] = []
    yield f"| | {' | '.join(f'`{family.name}`' for family in FAMILIES)} |"
    yield f"|{'---|' * (len(FAMILIES) + 1)}"
    for row in ROWS:
        found = [_cell(matrix.of(device, each.name, row.name), reasons) for each in FAMILIES]
        yield f"| {row.name if not row.settings else f'`{row.name}`'} | {' | '.join(found)} |"
    yield ""
    if reasons:
        yield "What failed:\n"
        yield from (f"{number}. {each.why}" for number, each in enumerate(reasons, 1))
        yield ""
    yield from _refusals(matrix, device)


def _cell(spread: Spread, reasons: list[Outcome]) -> str:
    parts = []
    for outcome, at in _together(spread):
        sign = _SIGN[Result(outcome.result)]
        if outcome.result == Result.FAILED:
            if outcome not in reasons:
                reasons.append(outcome)
            sign += f"<sup>{reasons.index(outcome) + 1}</sup>"
        parts.append(f"{sign} {_places(at)}".strip())
    return "<br>".join(parts)


def _together(spread: Spread) -> Spread:
    """Outcomes that look alike as one: refusals with reasons of their own have one sign."""
    found: dict[Outcome, dict[str, list[int]]] = {}
    for outcome, at in spread:
        alike = outcome if outcome.result == Result.FAILED else Outcome(outcome.result)
        places = found.setdefault(alike, {})
        for precision, stages in at.items():
            places[precision] = sorted([*places.get(precision, []), *stages])
    return list(found.items())


def _places(at: Mapping[str, Sequence[int]]) -> str:
    """Where something holds: nothing if everywhere, `0–2`, `fp32 3`."""
    said = {precision: _stages(stages) for precision, stages in at.items()}
    if len(said) == len(PRECISIONS) and len({*said.values()}) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{precision} {stages}".strip() for precision, stages in said.items())


def _stages(stages: Sequence[int]) -> str:
    if list(stages) == list(STAGES):
        return ""
    if len(stages) > 1 and list(stages) == list(range(stages[0], stages[-1] + 1)):
        return f"{stages[0]}–{stages[-1]}"
    return ", ".join(map(str, stages))


def _refusals(matrix: Matrix, device: str) -> Iterator[str]:
    """Which check refuses which features, with one of its reasons."""
    rows: dict[str, tuple[dict[str, None], str]] = {}
    for cell in cells():
        outcome = matrix.at(cell)
        if cell.device == device and outcome.result == Result.REFUSED:
            rows.setdefault(outcome.by, ({}, outcome.why))[0][cell.feature] = None
    if rows:
        yield "| refused by the check | of | such as |"
        yield "|---|---|---|"
    for by, (features, why) in sorted(rows.items()):
        yield f"| {by} | {', '.join(f'`{name}`' for name in features)} | {why} |"
    yield ""


def _resumes() -> Iterator[str]:
    found = resumes.recorded()
    yield "## From one layout into another\n"
    yield (
        f"A run in the layout on the left, continued after step {resumes.HALF} in the one above up "
        f"to step {resumes.WHOLE}, in fp32\non a CPU (`python -m benchmarks.resumes`, a "
        "part of `make matrix`): how far its losses are at most from those of a\nrun in the first "
        "layout that nobody disturbed. In every pair with a number each sample was learnt once. "
        "`2 × 4` is ZeRO\nstage 2 on 4 ranks, `tensor 2 × 4` layers shared by 2 of 4 ranks, at "
        "stage 1.\n"
    )
    for family, layouts in resumes.LAYOUTS.items():
        pairs = resumes.wanted(family)
        table = found.pairs.get(family, {})
        known = [off for row in table.values() for off in row.values()]
        numbers = [off for off in known if isinstance(off, float)]
        yield (
            f"`{family}`: {len(known)} of {len(pairs)} pairs tried, {len(numbers)} went on, off by "
            f"{max(numbers, default=0.0):.1e} at most; without a break runs in\ntwo of these "
            f"layouts differ by up to {found.bound(family):.1e}.\n"
        )
        yield f"| | {' | '.join(str(each) for each in layouts)} |"
        yield f"|{'---|' * (len(layouts) + 1)}"
        for before in layouts:
            row = table.get(str(before), {})
            cells_ = [
                "" if (before, after) not in pairs else _off(row.get(str(after)))
                for after in layouts
            ]
            yield f"| {before} | {' | '.join(cells_)} |"
        yield ""
        wrong = [off for off in known if isinstance(off, str)]
        yield from (f"- ✗ {why}" for why in dict.fromkeys(wrong))
    yield f"Last run on {found.made}."


def _off(found: float | str | None) -> str:
    if found is None:
        return "?"
    return "✗" if isinstance(found, str) else f"{found:.0e}"
