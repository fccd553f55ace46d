"""A ledger adds up what lives at a moment on the device, and names the most of each phase."""

from __future__ import annotations

from dslm.plan.ledger import (
    BACKWARD,
    LAYERS,
    PASS,
    PHASES,
    RUN,
    Moment,
    Place,
    Term,
    at,
    phases,
    placed,
)

ALL = frozenset(Moment)
TERMS = (
    Term(name="parameters", bytes=1, lives=ALL, source="s"),
    Term(name="loss", bytes=2, lives=frozenset({Moment.LOSS}), source="s"),
    Term(name="layers", bytes=4, lives=LAYERS, source="s"),
    Term(name="first", bytes=8, lives=frozenset({Moment.FIRST_LAYER}), source="s"),
    Term(name="update", bytes=16, lives=frozenset({Moment.STEP}), source="s"),
    Term(name="copy", bytes=32, lives=ALL, source="s", place=Place.PINNED),
    Term(name="state", bytes=64, lives=ALL, source="s", place=Place.PAGEABLE),
)


def test_what_lives_at_a_moment_on_the_device_adds_up() -> None:
    found = {moment: at(TERMS, moment) for moment in Moment}
    assert found == {
        **dict.fromkeys(Moment, 1), Moment.LOSS: 3, Moment.LAST_LAYER: 5, Moment.BETWEEN: 5,
        Moment.FIRST_LAYER: 13, Moment.STEP: 17,
    }  # fmt: skip


def test_a_phase_needs_what_its_highest_moment_needs() -> None:
    assert phases(iter(TERMS)) == {
        "init": 1, "forward": 1, "backward": 13, "step": 17, "evaluation": 1, "checkpoint": 1,
        "export": 1,
    }  # fmt: skip


def test_every_moment_of_a_run_is_in_one_phase() -> None:
    told = [moment for moments in PHASES.values() for moment in moments]
    assert sorted(told) == sorted(Moment)
    assert PHASES["backward"] == BACKWARD == LAYERS | {Moment.LOSS, Moment.GRADIENTS}
    assert LAYERS | {Moment.FORWARD, Moment.LOSS} == PASS
    assert ALL - {Moment.INIT} == RUN


def test_what_lies_on_the_host_is_counted_by_its_place() -> None:
    assert placed(TERMS, Place.PINNED) == 32
    assert placed(TERMS, Place.PINNED, Place.PAGEABLE) == 96
    assert placed(TERMS, Place.DEVICE) == 31
    assert placed(TERMS) == 0
