"""Guards of a training: its numbers and its replicas, looked at while it runs.

A step costs one small message between the ranks, which carries the wish to stop as well; the
numbers themselves were computed anyway. Trouble becomes an event; the recipe decides whether it
ends the run. Then checkpoints that were written since it began are put aside, so that a resumed
run starts from the last good one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dslm.errors import RunFailed
from dslm.run import events
from dslm.run.checkpoints import complete_checkpoints
from dslm.run.skipped import skip
from dslm.worker.assignment import Assignment
from dslm.worker.data.order import GlobalBatchSampler
from dslm.worker.data.packing import IGNORED
from dslm.worker.health import Health, Numbers, Trouble, judge_first
from dslm.worker.replicas import Replicas

SUSPECT = "suspect-"  # before the name of a checkpoint that was written after trouble began
_GUESSING = ("pretrain", "sft", "sequence", "mlm", "seq2seq")
_MOST_SAID = 20  # warnings of one kind


class Guards(TrainerCallback):
    """Judges every step on all ranks alike, and takes the wish to stop along."""

    def __init__(self, given: Assignment, sampler: GlobalBatchSampler) -> None:
        rank, recipe = given.rank, given.recipe
        self._rank = rank
        self._sampler = sampler
        self._recipe = recipe
        self._probe = rank.attempt.probe_steps  # a probe ends after so many, and saves nothing
        self._save = recipe.checkpoint.on_stop and not self._probe
        # over gloo: on a GPU the answer needs no synchronisation with the device
        self._group = dist.new_group(backend="gloo") if rank.world_size > 1 else None
        self._health = Health(fp16=recipe.precision == "fp16", rewarded=recipe.task == "grpo")
        self._losses: list[torch.Tensor] = []
        self._learnt: int | None = None
        self._said: dict[str, int] = {}
        self._held: Replicas | None = None
        self._agreed = 0  # the last step at which all replicas agreed
        self.engine: Callable[[], Any] = lambda: None
        self.finish_checkpoints: Callable[[], None] = lambda: None
        self.stopped = False

    def before_pass(self, inputs: dict[str, Any]) -> None:
        """Count what a micro batch teaches; called before it goes to the device."""
        labels = inputs.get("labels")
        if isinstance(labels, torch.Tensor):
            self._learnt = (self._learnt or 0) + int((labels != IGNORED).sum())

    def after_pass(self, loss: torch.Tensor) -> None:
        """Take in the loss of a micro batch, as a share of the step's."""
        self._losses.append(loss.detach())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        numbers, stop = self._together(state.global_step)
        trouble = (
            self._first(numbers, kwargs.get("model"))
            or self._health.judge(numbers)
            or self._replicas(state, control)
        )
        if trouble is not None:
            self._act(trouble, state.global_step, control)
        if stop:
            self.stopped = True
            control.should_training_stop = True
            control.should_save = control.should_save or self._save

    def _first(self, numbers: Numbers, model: Any) -> Trouble | None:
        """Judge the first loss of tasks that guess among the words of a vocabulary."""
        if numbers.step != 1 or self._recipe.task not in _GUESSING:
            return None
        vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
        pretrained = self._recipe.model.init == "pretrained"
        return judge_first(numbers.loss, vocabulary or 0, pretrained=pretrained)

    def _together(self, step: int) -> tuple[Numbers, bool]:
        """The numbers of a step over all ranks, and whether one of them was asked to stop."""
        loss = float(torch.stack(self._losses).sum()) if self._losses else None
        learnt, self._losses, self._learnt = self._learnt, [], None
        engine = self.engine()
        norm = _number(getattr(engine, "get_global_grad_norm", lambda: None)())
        probed = 0 < self._probe <= step
        mine = [float(probed or self._rank.guard.stop_asked), loss or 0.0, float(learnt or 0)]
        table = torch.tensor(mine, dtype=torch.float64)
        if self._group is not None:
            dist.all_reduce(table, group=self._group)
        optimizer = getattr(engine, "optimizer", None)
        fp16 = self._recipe.precision == "fp16"
        numbers = Numbers(
            step=step,
            loss=None if loss is None else table[1].item() / self._rank.world_size,
            grad_norm=norm,
            learnt=None if learnt is None else round(table[2].item()),
            loss_scale=_number(getattr(optimizer, "loss_scale", None)) if fp16 else None,
        )
        return numbers, table[0].item() > 0

    def _replicas(self, state: TrainerState, control: TrainerControl) -> Trouble | None:
        """Compare replicas when that is due: a slice, or everything before a checkpoint."""
        step, every = state.global_step, self._recipe.guards.every
        save = control.should_save or (state.save_steps and step % state.save_steps == 0)
        if not save and step % every:
            return None
        if self._held is None:
            self._held = Replicas(self.engine())
        found = self._held.differing(None if save else step // every)
        if found is None:
            self._agreed = step
            return None
        return Trouble(
            kind="replicas differ",
            message=f"ranks that must hold the same parameters do not: {found}; they agreed at "
            f"step {self._agreed}",
            since=self._agreed + 1,
        )

    def _act(self, trouble: Trouble, step: int, control: TrainerControl) -> None:
        """Record trouble, and end the attempt where the recipe says so."""
        action = self._action(trouble)
        count = self._said[trouble.kind] = self._said.get(trouble.kind, 0) + 1
        if action == "warn" and count > _MOST_SAID:
            return
        good = self._good_before(trouble.since) if action != "warn" else None
        if action == "rollback" and good is None:
            action = "warn"
        skipped: tuple[int, ...] = ()
        if action == "rollback":
            batch = self._sampler.batch_of(trouble.since - 1)
            skipped = (batch,)
            if self._rank.rank == 0:
                skip(self._rank.run, skipped)
        self._record(trouble, step, action, good, skipped)
        if action == "warn":
            return
        control.should_save = False
        dist.barrier()
        hint = _what_now(good) if action == "stop" else "the run goes on from there by itself"
        raise RunFailed(f"{trouble.message}; found in step {step}", hint=hint)

    def _action(self, trouble: Trouble) -> str:
        guards = self._recipe.guards
        if trouble.kind == "jump" and guards.spike == "rollback":
            return "rollback"
        return "warn" if trouble.spike else guards.on_trouble

    def _record(
        self, trouble: Trouble, step: int, action: str, good: int | None, skipped: tuple[int, ...]
    ) -> None:
        if self._rank.rank == 0:
            self._rank.record(
                events.Trouble(
                    **self._rank.stamp(),
                    kind=trouble.kind,
                    message=trouble.message,
                    step=step,
                    since=trouble.since,
                    action=action,
                    good=good,
                    skipped=skipped,
                )
            )

    def _good_before(self, step: int) -> int | None:
        """Put checkpoints from a step on aside; the step of the newest that is left.

        Rank 0 tells all: it completes them, and another rank may look before it has.
        """
        self.finish_checkpoints()
        left: list[int | None] = [None]
        if self._rank.rank == 0:
            for checkpoint in complete_checkpoints(self._rank.run.checkpoints):
                if checkpoint.step < step:
                    left = [checkpoint.step]
                else:
                    aside = checkpoint.path.with_name(f"{SUSPECT}{checkpoint.path.name}")
                    checkpoint.path.rename(aside)
        if self._group is not None:
            dist.broadcast_object_list(left, src=0, group=self._group)
        return left[0]


def _what_now(good: int | None) -> str:
    last = (
        "there is no checkpoint from before it"
        if good is None
        else f"the last good checkpoint is that of step {good}, which `--resume` starts from"
    )
    return (
        f"{last}; `dslm verify RECIPE` looks for the cause, and `--set guards.on_trouble=warn` "
        "trains on all the same"
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
