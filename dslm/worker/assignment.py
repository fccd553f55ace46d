"""The values of one training on one rank: its assignment, its inputs, its models.

Each is made once by a step of `train` and read by those that follow.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dslm.recipe.load import read_resolved
from dslm.recipe.schema import Recipe
from dslm.run import events, words
from dslm.run.directory import RunDirectory
from dslm.run.documents import AttemptRecord
from dslm.run.manifest import read_manifest
from dslm.worker.data.prepare import Prepared
from dslm.worker.layout.ranks import Layout
from dslm.worker.ranks import Rank
from dslm.worker.tasks.base import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A resolved recipe and DeepSpeed config, and this rank of the attempt that carries them out.

    `began` is when the rank set to work, on the monotonic clock.
    """

    rank: Rank
    recipe: Recipe
    config: dict[str, Any]
    attempt: AttemptRecord
    on_cpu: bool
    began: float

    @property
    def run(self) -> RunDirectory:
        """The run directory."""
        return self.rank.run

    @property
    def layout(self) -> Layout:
        """How the ranks share the work, and this rank's place among them."""
        return Layout.of(self.config, rank=self.rank.rank, world_size=self.rank.world_size)

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return int(self.config["zero_optimization"]["stage"])

    @property
    def seconds(self) -> float:
        """How long the rank has been at work."""
        return round(time.monotonic() - self.began, 3)

    def phase(self, name: words.Phase, detail: str = "") -> None:
        """Report the current phase while no steps are made."""
        self.rank.guard.note(phase=name)
        if self.rank.rank == 0:
            self.rank.record(events.Phase(**self.rank.stamp(), phase=name, detail=detail))


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a training reads: the samples of a task, and for how many optimizer steps."""

    task: Task
    tokenizer: PreTrainedTokenizerBase | None
    data: Prepared
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The model to train, and the one that its loss compares with, if any.

    `resident` counts the bytes of the process before there was a model.
    """

    model: PreTrainedModel
    reference: PreTrainedModel | None
    resident: int


def read_assignment(rank: Rank) -> Assignment:
    """Read the assignment of a rank from its run directory."""
    run = rank.run
    return Assignment(
        rank=rank,
        recipe=read_resolved(run.recipe),
        config=json.loads(run.ds_config.read_text(encoding="utf-8")),
        attempt=read_manifest(run).attempts[rank.attempt.number - 1],
        on_cpu=not torch.cuda.is_available(),
        began=time.monotonic(),
    )
