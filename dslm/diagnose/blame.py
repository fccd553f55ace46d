"""Who is to blame: one ordered table of rules. The first rule that fits a witness gives its place,
and the smallest place has failed first; where two have the same, the one that the supervisor saw
first, then the one that ended first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dslm.diagnose.witness import Witness


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A reason to blame a witness."""

    id: str
    text: str
    fits: Callable[[Witness], bool]


RULES = (
    Rule(
        id="launcher-seen",
        text="the supervisor saw the launcher or a host fail, and no rank before it",
        fits=lambda w: w.rank is None and w.named,
    ),
    Rule(
        id="signal-seen",
        text="it exited without a report, and its launcher names a signal",
        fits=lambda w: w.silent and w.by_signal and w.named and not w.follows,
    ),
    Rule(
        id="own-words",
        text="it reported a failure of its own, not the loss of another rank",
        fits=lambda w: w.rank is not None and not w.silent and not w.follows,
    ),
    Rule(
        id="silent-seen",
        text="the supervisor saw it exit without a report",
        fits=lambda w: w.silent and w.named and not w.follows,
    ),
    Rule(
        id="launcher-knows",
        text="the launcher's log has a known cause",
        fits=lambda w: w.rank is None and w.failure is not None and not w.follows,
    ),
    Rule(
        id="follower",
        text="it only noticed that another rank ended",
        fits=lambda w: w.rank is not None,
    ),
    Rule(
        id="launcher",
        text="only the launcher's output is known",
        fits=lambda w: True,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A witness, and the rule that gives it its place."""

    witness: Witness
    rule: Rule
    place: int  # from 1


def judge(witnesses: Iterable[Witness]) -> list[Judged]:
    """Return all witnesses, the one to blame first."""
    judged = []
    for witness in witnesses:
        place, rule = next(
            (place, rule) for place, rule in enumerate(RULES, 1) if rule.fits(witness)
        )
        judged.append(Judged(witness=witness, rule=rule, place=place))
    return sorted(judged, key=lambda j: (j.place, not j.witness.named, j.witness.ended))
