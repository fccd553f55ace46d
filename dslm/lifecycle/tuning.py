"""`dslm tune`: short real trials of the plan's strategies, until none can be expected to be better.

Each trial is a probe: an attempt of few steps in a run directory of its own, on data that all of
them share, without evaluation, checkpoint and export. What was tried is written down after each, so
that the same command continues where it was ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from dslm.codec import Json, Malformed, decode, encode, line_of
from dslm.decide.job import Job, resolve_job
from dslm.diagnose.catalogue import DEVICE_MEMORY, HOST_MEMORY
from dslm.errors import DslmError, Interrupted, OptionError, Where
from dslm.files import append_line, write_atomic
from dslm.launch.outcome import Status
from dslm.lifecycle.request import TrainingRequest
from dslm.lifecycle.training import train
from dslm.plan.search import Candidate
from dslm.plan.strategy import Strategy
from dslm.plan.tuning import KEYS, Trial, best, upcoming
from dslm.recipe.load import LoadedRecipe, load_recipe
from dslm.run.directory import RunDirectory
from dslm.run.events import Event, Step
from dslm.run.history import read_history

# What a plan chooses, by the key of the recipe.
RECIPE_KEYS = {
    "zero_stage": "parallel.zero_stage",
    "offload": "parallel.offload",
    "micro_batch_size": "batch.micro_size",
    "activation_checkpointing": "model.activation_checkpointing",
    "tensor_parallel": "parallel.tensor",
    "sequence_parallel": "parallel.sequence",
}
_OPEN = ("parallel.zero_stage=auto", "batch.micro_size=auto", "model.activation_checkpointing=auto")
# A trial trains as the recipe does, but says every step, and does nothing beside it.
_PROBING = (
    "log.every=1", "evaluation.every=null", "evaluation.sample=null", "checkpoint.every=null",
    "checkpoint.on_stop=false", "log.report_to=[]",
)  # fmt: skip
_WARM_UP = 2  # steps that don't count
_TRIALS, TUNED = "trials.jsonl", "tuned.yaml"
_OUT_OF_MEMORY = frozenset({*DEVICE_MEMORY, *HOST_MEMORY})


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What was asked for."""

    recipe: str  # as it was named
    settings: tuple[str, ...]
    request: TrainingRequest  # of the recipe itself; its output is the folder
    folder: Path
    trials: int = 10
    steps: int = 8
    minutes: float | None = None


@dataclass(slots=True)
class _Silent:
    """A listener of a trial: nobody reads its events but the measurement."""

    tell: Callable[[str], None]

    def run_made(self, run: Path) -> None:
        """Nobody asks for it."""

    def note(self, text: str) -> None:
        """Take in a line for people."""
        self.tell(text)

    def event(self, event: Event) -> None:
        """Nobody asks for it."""


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
        load_recipe(tuning.recipe, [*tuning.settings, *_OPEN]), tuning.request.fleet.cluster,
        on_phase=tell,
    )  # fmt: skip
    candidates = [job.plan.choice, *job.plan.others]
    trials = _known(tuning, job)
    deadline = time.monotonic() + 60 * tuning.minutes if tuning.minutes is not None else None
    while len(trials) < tuning.trials:
        candidate = upcoming(candidates, trials)
        if candidate is None or (deadline is not None and time.monotonic() > deadline):
            break
        on_trial(trials, candidate)
        trial = _tried(tuning, job, candidate, len(trials) + 1, tell)
        append_line(tuning.folder / _TRIALS, line_of(encode(trial)))
        trials.append(trial)
        on_trial(trials, None)
    winner = best(trials)
    if winner is None:
        why = next((trial.why for trial in trials if trial.why), "no strategy fits")
        raise OptionError(
            f"no trial could be measured: {why}",
            where=Where(file=tuning.folder),
            hint=f"`dslm plan {tuning.recipe}` says what is needed",
        )
    write_atomic(tuning.folder / TUNED, _tuned(tuning, winner))
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
    file, subject = tuning.folder / _TRIALS, tuning.folder / "subject.json"
    if not subject.is_file():
        tuning.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(subject, same)
        return []
    if subject.read_text(encoding="utf-8") != same:
        raise OptionError(
            "this folder holds the trials of another recipe or cluster",
            where=Where(file=tuning.folder),
            hint="name a new folder with `-o`, or delete this one",
        )
    if not file.is_file():
        return []
    found, lines = [], file.read_text(encoding="utf-8").splitlines()
    for line in lines:
        try:
            found.append(decode(Trial, line))
        except Malformed:
            continue  # the last one, cut off
    if len(found) < len(lines):  # the next one begins a line of its own
        write_atomic(file, "".join(f"{line_of(encode(trial))}\n" for trial in found))
    return found


def chosen(of: Strategy | Trial) -> dict[str, object]:
    """The recipe's keys of a strategy."""
    return {RECIPE_KEYS[name]: getattr(of, name) for name in KEYS}


def _tried(
    tuning: Tuning, job: Job, candidate: Candidate, number: int, tell: Callable[[str], None]
) -> Trial:
    memory, predicted = candidate.memory, candidate.time
    trial = Trial(
        number=number,
        predicted_seconds=predicted.step_seconds if predicted else None,
        predicted_bytes=memory.total if memory else None,
        **{name: getattr(candidate.strategy, name) for name in KEYS},
    )
    settings = [f"{key}={json.dumps(value)}" for key, value in chosen(candidate.strategy).items()]
    loaded: LoadedRecipe = load_recipe(tuning.recipe, [*tuning.settings, *settings, *_PROBING])
    output = _free(tuning.folder / f"trial-{number}")
    request = replace(
        tuning.request, recipe=loaded, output=output, probe=_WARM_UP + tuning.steps, force=True,
        resume=False, fleet=replace(tuning.request.fleet, max_restarts=0),
    )  # fmt: skip
    try:
        ended = train(request, _Silent(tell))
    except DslmError as failure:
        return replace(trial, why=failure.message)
    if ended.outcome.status in (Status.STOPPED, Status.KILLED):  # by whoever pressed Ctrl-C
        raise Interrupted(
            f"stopped in trial {number}",
            where=Where(file=tuning.folder),
            hint="the same command continues with the next trial",
        )
    return _measured(trial, ended.run)


def _free(folder: Path) -> Path:
    """A folder that isn't there: one of a trial that was cut off stays for whoever looks."""
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{folder.name.partition('.')[0]}.{number}")
    return folder


def _measured(trial: Trial, run: RunDirectory) -> Trial:
    """A trial with what its run says of steps and memory, or why it failed."""
    history = read_history(run)
    steps = [step for step in history.all(Step) if step.step > _WARM_UP]
    seconds = [step.step_seconds for step in steps if step.step_seconds]
    peaks = [step.memory_peak_bytes for step in steps if step.memory_peak_bytes]
    failure = history.failure
    if not seconds or failure is not None:
        return replace(
            trial,
            out_of_memory=failure is not None and failure.id in _OUT_OF_MEMORY,
            why=failure.message if failure is not None else "it made too few steps",
        )
    return replace(trial, seconds=median(seconds), memory_bytes=max(peaks, default=None))


def _tuned(tuning: Tuning, winner: Trial) -> str:
    """A recipe that extends the one that was tuned by the keys that won."""
    import yaml

    path = Path(tuning.recipe)
    base = str(path.absolute()) if path.is_file() else tuning.recipe
    content: dict[str, Json] = {}
    for key, value in {**_given(tuning.settings), **chosen(winner)}.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})  # type: ignore[assignment]
        place[last] = value  # type: ignore[assignment]
    said = f"# {winner.seconds:.4g} s a step, the best of the trials in this folder\n"
    return said + yaml.safe_dump({"extends": base, **content}, sort_keys=False)


def _given(settings: Sequence[str]) -> Mapping[str, object]:
    """The overrides that the recipe was tuned with."""
    import yaml

    pairs = (setting.partition("=") for setting in settings)
    return {key: yaml.safe_load(value) for key, _, value in pairs}
