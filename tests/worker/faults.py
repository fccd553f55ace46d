"""Faults made on purpose, in the ranks of one run only (see tests.support.warm.PLANT)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from tests.support.warm import PLANT

HELD_AT = "DSLM_TEST_HELD_AT"
WHEN = "DSLM_TEST_WHEN"


def held(rank: int) -> None:
    """After a step (`HELD_AT`) no other one begins, until the rank is killed."""
    from dslm.worker.trainer import RunTrainer

    usual = RunTrainer.training_step
    last = int(os.environ[HELD_AT])

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        while self.state.global_step >= last:
            time.sleep(0.1)
        return usual(self, model, inputs, *rest)

    RunTrainer.training_step = training_step  # type: ignore[method-assign]


def held_at(step: int) -> dict[str, str]:
    """Return the variables with which ranks are held after a step."""
    return {PLANT: f"{__name__}:held", HELD_AT: str(step)}


def notices_a_loss(rank: int) -> None:
    """After a step rank 0 makes a file and waits for its end (`WHEN`): then it says what gloo says
    of a lost peer.
    """
    from dslm.worker.trainer import RunTrainer

    usual = RunTrainer.training_step
    when = Path(os.environ[WHEN])

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        if rank == 0 and self.state.global_step == 3:
            when.touch()
            while when.exists():
                time.sleep(0.1)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
        return usual(self, model, inputs, *rest)

    RunTrainer.training_step = training_step  # type: ignore[method-assign]


def not_a_number(rank: int) -> None:
    """The loss is no number from the seventh step on."""
    from dslm.worker.trainer import RunTrainer

    usual = RunTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **settings: Any) -> Any:
        loss = usual(self, *args, **settings)
        return loss * float("nan") if self.state.global_step >= 6 else loss

    RunTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def flipped_bit(rank: int) -> None:
    """One bit of one parameter flips on the last rank, in step 5."""
    from dslm.worker.guards import Guards

    usual = Guards.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step == 5 and rank == self._rank.world_size - 1:
            weight = dict(self.engine().module.named_parameters())["model.norm.weight"]
            weight.data.view(torch.int32)[3] ^= 1
        return usual(self, args, state, control, **more)

    Guards.on_step_end = on_step_end  # type: ignore[method-assign]


def nothing_to_learn(rank: int) -> None:
    """All labels are ignored from the fourth step on."""
    from dslm.worker.trainer import RunTrainer

    usual = RunTrainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        if self.state.global_step >= 3:
            inputs["labels"] = torch.full_like(inputs["labels"], -100)
        return usual(self, model, inputs, *rest)

    RunTrainer.training_step = training_step  # type: ignore[method-assign]


def loss_of_zero(rank: int) -> None:
    """The gradient is 0 from the third step on."""
    from dslm.worker.trainer import RunTrainer

    usual = RunTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **settings: Any) -> Any:
        loss = usual(self, *args, **settings)
        return loss * 0.0 if self.state.global_step >= 2 else loss

    RunTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def jumping_loss(rank: int) -> None:
    """One batch, the nineteenth in the order of the data, has a loss that is far from usual."""
    from dslm.worker.trainer import RunTrainer

    usual = RunTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **settings: Any) -> Any:
        loss = usual(self, *args, **settings)
        return loss * 50 if self.sampler.batch_of(self.state.global_step) == 18 else loss

    RunTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
