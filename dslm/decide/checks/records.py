"""Checks on the first record of each source: of a shape, and with a template, that the task needs.

Only what lies on this machine is looked at, and only one line of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dslm.decide.checks.base import TRAINING, Case, Check, Problem, data_problem
from dslm.decide.model import local_folder
from dslm.errors import DataError
from dslm.recipe.chats import Message
from dslm.recipe.data_paths import origins, sources
from dslm.recipe.formats import BY_NAME, KINDS, formed
from dslm.recipe.schema import TokenizerTraining

_LONGEST_LINE = 1 << 20  # bytes of a first record that is looked at
_WAYS = "`data.fields` maps names of fields, `data.format` says the shape; docs/data.md shows both"


def _shape(case: Case) -> Iterator[Problem]:
    """Say of the first record of each source that the task can't learn from its shape."""
    kind = KINDS.get(case.recipe.task)
    if kind is None or not case.here:
        return
    data = case.recipe.data
    chats = False
    for name in ("train", "eval"):
        try:
            found = origins(case.recipe, name)
        except DataError:
            return  # said by another check
        for origin, source in zip(found, sources(case.recipe, name), strict=True):
            file = next((f for f in origin.files if f.suffix == ".jsonl"), None)
            record = _first_record(file) if file is not None else None
            if record is None:
                continue
            fields = {str(ours): theirs for ours, theirs in (data.fields | source.fields).items()}
            form = source.format or data.format
            shape, values = formed(record, kind, name=form, fields=fields)
            if isinstance(values, str) and (not shape or BY_NAME[shape].kind != kind):
                yield data_problem(f"data.{name}", f"{file}:1: {values}", _WAYS)
            chats = chats or (not isinstance(values, str) and _is_chat(values))
    if chats and data.chat_template is None and _has_no_template(case):
        yield Problem(
            key="data.chat_template",
            message="the data are chats, and the tokenizer has no chat template",
            hint="`--set data.chat_template=chatml`, a preset's name or a file; or use a chat "
            "model's tokenizer (`model.tokenizer`)",
        )


def _first_record(file: Path) -> Message | None:
    """The first record of a file of JSON lines; None where its line can't be read as one."""
    try:
        with file.open("rb") as stream:
            found = json.loads(stream.readline(_LONGEST_LINE).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_chat(values: Message) -> bool:
    return "messages" in values or isinstance(values.get("prompt"), list)


def _has_no_template(case: Case) -> bool:
    """Return whether the tokenizer is known here to have no chat template."""
    wanted = case.recipe.model.tokenizer or case.recipe.model.name
    if isinstance(wanted, TokenizerTraining):
        return True
    folder = local_folder(wanted)
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return False
    return (
        not (folder / "chat_template.jinja").is_file()
        and not (folder / "additional_chat_templates").is_dir()
        and "chat_template" not in _read(folder / "tokenizer_config.json")
    )


def _read(file: Path) -> Message:
    """A JSON object; empty where it can't be read: a rank says why."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


CHECKS = (
    Check(
        name="records of a shape that the task learns from",
        looks_at="data.train, data.eval, data.format, data.fields, data.chat_template",
        judge=_shape,
        verbs=TRAINING,
        of_machine=True,
    ),
)
