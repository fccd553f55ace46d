"""What can't be right in the numbers of a training is found, and what is only unusual is not."""

from __future__ import annotations

import math
import random

import pytest

from dslm.worker.health import SEVERAL, Health, Numbers, Trouble, judge_first


def _judged(rows: list[Numbers], *, fp16: bool = False) -> list[Trouble]:
    health = Health(fp16=fp16)
    return [trouble for row in rows if (trouble := health.judge(row)) is not None]


def _falling(steps: int, start: int = 1) -> list[Numbers]:
    draw = random.Random(1)
    return [
        Numbers(
            step=step,
            loss=8 * math.exp(-step / 60) + draw.gauss(0, 0.1),
            grad_norm=draw.uniform(0.5, 2),
            learnt=512,
        )
        for step in range(start, start + steps)
    ]


def test_a_training_that_learns_is_left_alone() -> None:
    assert not _judged(_falling(300))


def test_a_scaler_that_looks_for_its_scale_is_left_alone() -> None:
    overflows = [Numbers(step=n, loss=8.0 - n / 10, grad_norm=math.inf) for n in range(1, 17)]
    assert not _judged(overflows, fp16=True)


NAN, INF = math.nan, math.inf
TROUBLES = {
    "a loss that is no number": ([Numbers(step=21, loss=NAN, grad_norm=1.0)], "not finite", 21),
    "a gradient that is no number": ([Numbers(step=21, loss=2.0, grad_norm=NAN)], "not finite", 21),
    "an infinite gradient": ([Numbers(step=21, loss=2.0, grad_norm=INF)], "not finite", 21),
    "no learnt token": (
        [Numbers(step=21, loss=0.0, grad_norm=0.0, learnt=0)], "nothing learnt", 21,
    ),
    "a loss of 0": (
        [Numbers(step=21 + n, loss=0.0, grad_norm=1.0 + n) for n in range(SEVERAL)], "constant", 21,
    ),
    "a gradient of 0": (
        [Numbers(step=21 + n, loss=2.0 + n / 9, grad_norm=0.0) for n in range(SEVERAL)],
        "constant", 21,
    ),
    "a norm that is always 1": (
        [Numbers(step=21 + n, loss=2.0 + n / 9, grad_norm=1.0) for n in range(SEVERAL)],
        "constant", 21,
    ),
    "a loss that never changes": (
        [Numbers(step=21 + n, loss=7.5, grad_norm=1.0 + n) for n in range(SEVERAL)], "constant", 21,
    ),
    "a loss scale at its minimum": (
        [Numbers(step=21 + n, loss=2.0 + n / 9, grad_norm=1.0 + n, loss_scale=1.0)
         for n in range(SEVERAL)],
        "loss scale", 21,
    ),
    "a jump": ([Numbers(step=21, loss=40.0, grad_norm=1.0)], "jump", 21),
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLES)
def test_trouble_is_named_with_the_step_that_it_began_at(name: str) -> None:
    rows, kind, since = TROUBLES[name]
    found = _judged([*_falling(20), *rows])
    assert [(trouble.kind, trouble.since) for trouble in found] == [(kind, since)]
    assert found[0].spike is (kind == "jump")


def test_fp16_without_a_finite_gradient_for_long_is_trouble() -> None:
    rows = [Numbers(step=n, loss=8.0 - n / 100, grad_norm=NAN) for n in range(1, 30)]
    assert _judged(rows, fp16=True)[0].kind == "not finite"


@pytest.mark.parametrize(
    ("loss", "pretrained", "said"),
    [
        (7.62, False, None),
        (9.5, False, None),  # a wide initialisation
        (1.2, False, "do the inputs show the labels"),
        (2.5, True, None),
        (7.6, True, None),  # of another language
        (11.0, True, "knows nothing of this data"),
        (math.nan, True, None),
    ],
)
def test_the_first_loss_is_compared_with_guessing(
    loss: float, pretrained: bool, said: str | None
) -> None:
    trouble = judge_first(loss, 2048, pretrained=pretrained)
    assert (trouble is None) == (said is None)
    assert trouble is None or (said or "") in trouble.message
