"""Checks on reinforcement learning: rewards that there are, groups that fit, a way to generate."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from dslm.decide.checks.base import RECIPES, TRAINING, Case, Check, Problem
from dslm.errors import DataError, did_you_mean
from dslm.files import expanded, is_file
from dslm.recipe.data_paths import origins
from dslm.recipe.formats import KINDS, formed
from dslm.recipe.rewarding import BUILT_IN_REWARDS, COMPARING_REWARDS, Reward
from dslm.units import number_of

_LONGEST_LINE = 1 << 20
_WAY = f"`FILE.py:NAME`, or a built-in one: {', '.join(BUILT_IN_REWARDS)}"


def _rewards(case: Case) -> Iterator[Problem]:
    recipe = case.recipe
    if recipe.task != "grpo":
        if recipe.rewards:
            yield Problem(
                key="rewards",
                message=f"the task `{recipe.task}` gives no rewards",
                hint="use `task: grpo`, or leave them out",
            )
        return
    if not recipe.rewards:
        yield Problem(
            key="rewards",
            message="the recipe doesn't say what an answer is worth",
            hint="such as `rewards: [{function: rewards.py:correct}]`; " + _WAY,
        )
    if recipe.checkpoint.keep_best:
        yield Problem(
            key="checkpoint.keep_best",
            message="the best checkpoints are those of the lowest loss, and an evaluation of "
            "rewards has none",
            hint="leave it out: `checkpoint.keep` keeps the newest",
        )
    for number, reward in enumerate(recipe.rewards):
        yield from _reward(f"rewards.{number}", reward, here=case.here)


def _reward(key: str, reward: Reward, *, here: bool) -> Iterator[Problem]:
    if reward.function is None:
        return
    file, colon, name = reward.function.rpartition(":")
    if not colon:
        if name not in BUILT_IN_REWARDS:
            near = did_you_mean(name, BUILT_IN_REWARDS)
            yield Problem(
                key=f"{key}.function", message=f"there is no reward `{name}`", hint=near or _WAY
            )
        elif reward.pattern is not None:
            try:
                re.compile(reward.pattern)
            except re.error as failure:
                text = f"`{reward.pattern}` is not a regular expression: {failure}"
                yield Problem(key=f"{key}.pattern", message=text)
        return
    if not here:
        return
    if not is_file(expanded(file)):
        yield Problem(
            key=f"{key}.function",
            message=f"there is no file `{file}`",
            hint="a path in a recipe is relative to its file, one of `--set` to the current folder",
        )
        return
    yield from _in_file(key, expanded(file), file, name)


def _in_file(key: str, path: Path, said: str, name: str) -> Iterator[Problem]:
    """Say of a function that its file doesn't have it, without running the file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as failure:
        place, why = "", str(failure)
        if isinstance(failure, SyntaxError) and failure.lineno is not None:
            place, why = f":{failure.lineno}", failure.msg
        yield Problem(key=f"{key}.function", message=f"{said}{place} can't be read: {why}")
        return
    names = set(_bound(tree))
    coroutines = {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}
    if name in coroutines:
        yield Problem(
            key=f"{key}.function",
            message=f"`{name}` of {said} is a coroutine: rewards are plain functions",
            hint="`asyncio.run` inside a plain one waits for it",
        )
    elif name not in names and "*" not in names:
        yield Problem(
            key=f"{key}.function",
            message=f"{said} has no function `{name}`",
            hint=did_you_mean(name, names) or f"it has {', '.join(sorted(names)) or 'none'}",
        )


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a module binds to what may be called, also below an `if` or a `try`."""
    for below in ast.iter_child_nodes(node):
        match below:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.ImportFrom(names=names):
                yield from (each.asname or each.name for each in names)
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.AnnAssign(value=None) | ast.AsyncFunctionDef() | ast.comprehension():
                pass
            case _:
                yield from _bound(below)


def _references(case: Case) -> Iterator[Problem]:
    """Say that rewards compare with references and the first record has none."""
    recipe = case.recipe
    compare = [r.function for r in recipe.rewards if r.function in COMPARING_REWARDS]
    if recipe.task != "grpo" or not compare or not case.here:
        return
    try:
        found = origins(recipe, "train")
    except DataError:
        return  # said by another check
    for origin in found:
        file = next((f for f in origin.files if f.suffix == ".jsonl"), None)
        record = _first_record(file) if file is not None else None
        if record is None:
            continue
        _, values = formed(record, KINDS["grpo"], name=recipe.data.format, fields=dict(
            (str(ours), theirs) for ours, theirs in recipe.data.fields.items()
        ))  # fmt: skip
        if not isinstance(values, str) and values.get("answer") is None:
            yield Problem(
                key="rewards",
                message=f"`{compare[0]}` compares with a reference, and the first record of {file} "
                "has none",
                hint="a field `answer`, or `data.fields: {answer: NAME}`",
            )


def _first_record(file: Path) -> dict[str, object] | None:
    try:
        with file.open("rb") as stream:
            found = json.loads(stream.readline(_LONGEST_LINE).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _groups(case: Case) -> Iterator[Problem]:
    recipe = case.recipe
    if recipe.task != "grpo":
        return
    size, group = recipe.batch.global_size, recipe.rollout.group
    if size % group:
        near = max(1, round(size / group)) * group
        yield Problem(
            key="batch.global_size",
            message=f"{number_of(size, 'answer')} a step can't make whole groups of {group} "
            "(`rollout.group`)",
            hint=f"`--set batch.global_size={near}`: {number_of(near // group, 'prompt')} of "
            f"{group} answers",
        )
    if recipe.rollout.max_tokens >= recipe.data.sequence_length:
        yield Problem(
            key="rollout.max_tokens",
            message=f"an answer of {number_of(recipe.rollout.max_tokens, 'token')} leaves no room "
            f"for a prompt in {recipe.data.sequence_length} (`data.sequence_length`)",
            hint="`data.sequence_length` is for prompt and answer together",
        )


def _engine(case: Case) -> Iterator[Problem]:
    if case.recipe.task == "grpo" and case.recipe.rollout.engine == "vllm" and case.on_cpu:
        yield Problem(
            key="rollout.engine",
            message="vLLM generates on CUDA here, but this is a CPU",
            hint="`--set rollout.engine=transformers`",
        )


CHECKS = (
    Check(
        name="rewards that there are",
        looks_at="task, rewards, checkpoint.keep_best",
        judge=_rewards,
        verbs=TRAINING,
    ),
    Check(
        name="references where rewards compare",
        looks_at="rewards, data.train",
        judge=_references,
        verbs=TRAINING,
        of_machine=True,
    ),
    Check(
        name="groups of answers that fit",
        looks_at="batch.global_size, rollout, data.sequence_length",
        judge=_groups,
        verbs=RECIPES,
    ),
    Check(
        name="a way to generate that the device has",
        looks_at="rollout.engine",
        judge=_engine,
        verbs=TRAINING,
    ),
)
