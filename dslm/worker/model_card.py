"""The model card of a run: recipe, data, steps, loss and versions, as the Hub shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dslm.files import write_atomic
from dslm.recipe.hub_names import HUB_NAME, elsewhere
from dslm.recipe.load import dump_recipe, read_resolved, recipe_of_run
from dslm.run.directory import RunDirectory
from dslm.run.documents import Manifest, PlanFile, find_document
from dslm.run.evaluations import Evaluation, evaluations_of, rows_of
from dslm.run.events import Accuracy, DataPart, DataSummary, End, Start
from dslm.run.history import History, read_history
from dslm.run.manifest import versions as installed
from dslm.run.verification import difference, verified_of
from dslm.units import number_of, render_bytes
from dslm.worker.answer import Tell, answer


def model_card(run: RunDirectory, step: int, *, adapters: bool) -> str:
    """README.md of the model that a run had made by a step.

    Args:
        run: the run.
        step: the step.
        adapters: whether the model is adapters alone, to be loaded on top of another.

    Raises:
        RecipeError: the recipe in the run directory is no recipe any more.
    """
    history = read_history(run).until(step)
    recipe = read_resolved(run.recipe)
    base = recipe.model.name if recipe.model.init != "scratch" else None
    head: dict[str, object] = {
        "library_name": "peft" if adapters else "transformers",
        "tags": ["dslm"],
    }
    seen = recipe_of_run(run.recipe).model.name  # a folder beside where the run began is no name
    on_hub = base is not None and elsewhere(seen) and HUB_NAME.fullmatch(base) is not None
    if on_hub:  # which refuses a card that names anything else there
        head["base_model"] = base
    start = history.last(Start)
    train = ((start.data if start else None) or DataSummary()).train or DataPart()
    steps = history.steps
    facts: dict[str, object] = {
        "task": recipe.task,
        "trained from": None if on_hub else base,
        "steps": step,
        "global batch": recipe.batch.global_size,
        "training data": recipe.data.train,
        "documents": train.documents,
        "tokens": train.tokens,
        "training loss": f"{steps[-1].loss:.4f}" if steps and steps[-1].loss is not None else None,
        **_held_out(history),
        "parameters": start.parameters if start else None,
        "parameters trained": start.trained_parameters
        if start and start.trained_parameters != start.parameters
        else None,
    }
    scored = evaluations_of(run)
    lines = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    name, made_with = _named(history.manifest)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        + "\n\n".join(part for part in (f"# {name}", recipe.description, "\n".join(lines)) if part)
        + _planned(run, history)
        + _verified(run)
        + _evaluated(scored)
        + f"\n\nVersions: {made_with}.\n\n## Recipe\n\n```yaml\n{dump_recipe(recipe)}```\n"
    )


def _held_out(history: History) -> dict[str, object]:
    """What the last evaluation of the run found."""
    if not history.evaluations:
        return {}
    last = history.evaluations[-1]
    found = {"loss": last.loss, **last.metrics}
    return {
        f"evaluation {name}": _number(value) for name, value in found.items() if value is not None
    }


def _number(value: float) -> str:
    """A metric with four digits; a count without."""
    return f"{value:.4f}" if value % 1 else f"{value:.0f}"


def _planned(run: RunDirectory, history: History) -> str:
    """What the run was planned to need, beside what was measured."""
    plan = find_document(PlanFile, run.plan)
    device = plan.memory.device if plan is not None else None
    if plan is None or device is None or device.total is None:
        return ""
    cluster = plan.cluster
    where = f"{cluster.world_size or 1} × {cluster.device}" if cluster.device else "a device"
    peaks = [step.memory_peak_bytes for step in history.steps if step.memory_peak_bytes]
    measured = render_bytes(max(peaks)) if peaks else ""
    # what a process takes without the model is a guess until it is measured
    compared = history.last(Accuracy)
    planned = compared.predicted_bytes if compared is not None else None
    rows = [("memory of a rank", render_bytes(planned or device.total), measured)]
    times = sorted(step.step_seconds for step in history.steps if step.step_seconds)
    if plan.time is not None and plan.time.step_seconds:
        measured = f"{times[len(times) // 2]:.3g} s" if times else ""
        rows.append(("a step", f"{plan.time.step_seconds:.3g} s", measured))
    lines = [f"Planned for {where}.\n", "| | planned | measured |", "|---|---|---|"]
    lines += [f"| {name} | {planned} | {seen} |" for name, planned, seen in rows]
    return "\n\n## Plan\n\n" + "\n".join(lines)


def _verified(run: RunDirectory) -> str:
    """What `dslm verify` found of the run's layout."""
    found = verified_of(run)
    if found is None:
        return ""
    said = (
        f"The layout learns what one process does: {found.parameters} parameters and "
        f"{number_of(found.samples, 'sample')} were compared over "
        f"{number_of(found.steps, 'step')} on {number_of(found.ranks, 'rank')} at ZeRO stage "
        f"{found.stage}."
        if found.same
        else f"The layout was compared with one process: {difference(found)}."
    )
    return f"\n\n## Verification\n\n{said}"


def _evaluated(found: Sequence[Evaluation]) -> str:
    """The newest scores of the run's exported model, beside those of the model compared with."""
    newest = {
        (what, metric): (value, other, one.against)
        for one in found
        if one.step is None
        for what, metric, value, other in rows_of(one)
    }
    if not newest:
        return ""
    lines = ["| evaluated on | metric | this model | compared with |", "|---|---|---|---|"]
    for (what, metric), (value, other, name) in newest.items():
        beside = "" if other is None else f"{_number(other)} ({name})"
        lines.append(f"| {what} | {metric} | {_number(value)} | {beside} |")
    return "\n\n## Evaluation\n\n" + "\n".join(lines)


def renew(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Write the card of a run's exported model anew."""
    run = RunDirectory(Path(request["run"]))
    last = read_history(run).last(End)
    step = last.step if last is not None and last.step is not None else 0
    adapters = (run.model / "adapter_config.json").is_file()
    write_atomic(run.model / "README.md", model_card(run, step, adapters=adapters))
    return {}


def _named(manifest: Manifest | None) -> tuple[str, str]:
    """The name of a run and the versions it was made with."""
    name = manifest.name if manifest else "A model"
    found = manifest.versions if manifest else installed()
    return name, ", ".join(f"{package} {version}" for package, version in found.items() if version)


if __name__ == "__main__":
    answer(renew)
