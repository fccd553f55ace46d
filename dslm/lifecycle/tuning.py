"""`dslm tune`: short real trials of the plan's strategies, until none can be expected to be better.

Each trial is a probe: an attempt of few steps in a run directory of its own, on data that all of
them share, without evaluation, checkpoint and export. What was tried is written down after each, so
that the same command continues where it was ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from dslm.codec import Json, line_of
from dslm.decide.job import Job, resolve_job
from dslm.errors import OptionError, Where
from dslm.files import write_atomic
from dslm.lifecycle.trial import (
    PROBING,
    TUNED,
    Tried,
    Tuning,
    check_same,
    read_trials,
    run_trial,
    run_trials,
    tuned_recipe,
)
from dslm.plan.search import Candidate
from dslm.plan.strategy import Strategy
from dslm.plan.tuning import KEYS, Trial, best, hopeless, upcoming
from dslm.recipe.load import load_recipe
from dslm.run.events import Step

# What a plan chooses, by the key of the recipe.
RECIPE_KEYS = {
    "zero_stage": "parallel.zero_stage",
    "offload": "parallel.offload",
    "micro_batch_size": "batch.micro_size",
    "activation_checkpointing": "model.activation_checkpointing",
    "tensor_parallel": "parallel.tensor",
    "sequence_parallel": "parallel.sequence",
    "expert_parallel": "parallel.expert",
    "second_partition": "parallel.hpz",
}
OPEN = ("parallel.zero_stage=auto", "batch.micro_size=auto", "model.activation_checkpointing=auto")
_WARM_UP = 2  # steps that don't count
_TRIALS = "trials.jsonl"


OnTrial = Callable[[Sequence[Trial], Candidate | None], None]


def tune(tuning: Tuning, on_trial: OnTrial, tell: Callable[[str], None]) -> list[Trial]:
    """Try strategies and write what wins; returns every trial.

    Args:
        tuning: what was asked for.
        on_trial: called with the trials so far, and what is tried now.
        tell: called with what takes a while.

    Raises:
        InputError: the recipe is wrong.
        OptionError: the folder holds trials of another recipe, or no strategy fits.
    """
    job = resolve_job(
        load_recipe(tuning.recipe, [*tuning.settings, *OPEN]), tuning.request.fleet.cluster,
        on_phase=tell,
    )  # fmt: skip
    candidates = [job.plan.choice, *job.plan.others]
    trials = _known(tuning, job)
    run_trials(
        tuning, _TRIALS, trials, on_trial=on_trial,
        following=lambda known: upcoming(candidates, known),
        tried=lambda candidate: _tried(tuning, candidate, trials, tell),
    )  # fmt: skip
    winner = best(trials)
    if winner is None:
        why = next((trial.why for trial in trials if trial.why), "no strategy fits")
        raise OptionError(
            f"no trial could be measured: {why}",
            where=Where(file=tuning.folder),
            hint=f"`dslm plan {tuning.recipe}` says what is needed",
        )
    said = f"{winner.seconds:.4g} s a step, the best of the trials in this folder"
    text = tuned_recipe(tuning.recipe, tuning.settings, chosen(winner), said)
    write_atomic(tuning.folder / TUNED, text)
    return trials


def _known(tuning: Tuning, job: Job) -> list[Trial]:
    """The trials that are already there, of the same recipe on the same cluster."""
    same = line_of(
        {
            "recipe": job.recipe.model_dump_json(exclude={"batch": {"micro_size"}}),
            "world_size": job.cluster.world_size,
            "device": job.cluster.device.name,
        }
    )
    check_same(tuning.folder, same)
    return read_trials(tuning.folder / _TRIALS, Trial)


def chosen(of: Strategy | Trial) -> dict[str, Json]:
    """The recipe's keys of a strategy."""
    return {RECIPE_KEYS[name]: getattr(of, name) for name in KEYS}


def _tried(
    tuning: Tuning, candidate: Candidate, trials: Sequence[Trial], tell: Callable[[str], None]
) -> Trial:
    memory, predicted = candidate.memory, candidate.time
    number = len(trials) + 1
    trial = Trial(
        number=number,
        predicted_seconds=predicted.step_seconds if predicted else None,
        predicted_bytes=memory.total if memory else None,
        **{name: getattr(candidate.strategy, name) for name in KEYS},
    )
    settings = [f"{key}={json.dumps(value)}" for key, value in chosen(candidate.strategy).items()]

    def give_up(steps: Sequence[Step]) -> bool:
        return hopeless(_counted(steps), trials)

    tried = run_trial(
        tuning.request,
        load_recipe(tuning.recipe, [*tuning.settings, *settings, *PROBING]),
        tuning.folder / f"trial-{number}",
        steps=_WARM_UP + tuning.steps,
        give_up=give_up,
        tell=tell,
    )
    return _measured(trial, tried)


def _counted(steps: Sequence[Step]) -> list[float]:
    """Seconds of the steps that count."""
    return [one.step_seconds for one in steps if one.step > _WARM_UP and one.step_seconds]


def _measured(trial: Trial, tried: Tried) -> Trial:
    """A trial with what its run says of steps and memory, or why it failed."""
    seconds = _counted(tried.steps)
    if tried.why or not seconds:
        why = tried.why or "it made too few steps"
        return replace(trial, out_of_memory=tried.out_of_memory, why=why)
    peaks = [one.memory_peak_bytes for one in tried.steps if one.memory_peak_bytes]
    return replace(
        trial, seconds=median(seconds), memory_bytes=max(peaks, default=None),
        given_up=tried.gave_up,
    )  # fmt: skip
