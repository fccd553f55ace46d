"""Checks on the data and the tokenizer: named, there, and of the kind that the task reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dslm.decide.checks.base import ALL, ONLY_TRAIN, TRAINING, Case, Check, Problem, data_problem
from dslm.decide.checks.model import HEADS
from dslm.decide.model import is_path, local_folder
from dslm.errors import DataError
from dslm.recipe.data_paths import (
    ARITHMETIC,
    DIGITS,
    IMAGE_SUFFIXES,
    RECORD_SUFFIXES,
    STDLIB,
    DataSource,
    check_data,
    origins,
    sources,
    suffix_of,
)
from dslm.recipe.hub_names import TOKENIZER_FILES, WITHOUT_TEXT
from dslm.recipe.schema import TokenizerTraining

# What a task reads of a record: files of plain text have only text.
_NEEDS = {
    "sft": "chats (`messages`), or `prompt` and `completion`",
    **dict.fromkeys(("dpo", "orpo", "reward"), "`prompt`, `chosen` and `rejected`"),
    "kto": "`prompt`, `completion` and `label`",
    "grpo": "prompts, with references where rewards compare",
    "seq2seq": "`prompt` and `completion`",
    "classify": "a text and its label",
    "vision": "images and their labels",
}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
_NO_MASK_OF_ITS_OWN = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})


def _named(case: Case) -> Iterator[Problem]:
    if not case.recipe.data.train:
        yield data_problem(
            "data.train",
            "the recipe names no training data",
            "add it: `--set data.train=PATH`, a file, a folder, a glob pattern or a Hub name",
        )


def _there(case: Case) -> Iterator[Problem]:
    try:
        check_data(case.recipe)
    except DataError as failure:
        yield data_problem(failure.where.key or "data.train", failure.message, failure.hint)


def _of_the_task(case: Case) -> Iterator[Problem]:
    task = case.recipe.task
    for name in ("train", "eval"):
        key = f"data.{name}"
        if task == "vision" and any(s.path == STDLIB for s in sources(case.recipe, name)):
            yield data_problem(key, f"`{STDLIB}` holds no images", f"such as `{DIGITS}`")
        elif task != "vision" and any(s.path == DIGITS for s in sources(case.recipe, name)):
            yield data_problem(
                key,
                f"`{DIGITS}` are images, and the task `{task}` reads none",
                "use `task: vision`, or data that has text",
            )
        elif task == "grpo" and any(s.path == STDLIB for s in sources(case.recipe, name)):
            yield data_problem(
                key, f"`{STDLIB}` holds no prompts to answer", f"such as `{ARITHMETIC}`"
            )
        elif task != "grpo" and any(s.path == ARITHMETIC for s in sources(case.recipe, name)):
            yield data_problem(
                key,
                f"`{ARITHMETIC}` are prompts to answer, which the task `{task}` doesn't do",
                "use `task: grpo`, or other data",
            )
        elif task in _NEEDS and case.here:
            yield from _not_only_text(case, name)


def _not_only_text(case: Case, name: str) -> Iterator[Problem]:
    """Files of plain text hold nothing else that a task could learn."""
    task = case.recipe.task
    known = RECORD_SUFFIXES.keys() | (IMAGE_SUFFIXES if task == "vision" else set())
    try:
        found = origins(case.recipe, name)
    except DataError:
        return  # said by another check
    for origin in found:
        if origin.path != STDLIB and origin.files and not _holds(origin, known):
            images = all(suffix_of(file) in IMAGE_SUFFIXES for file in origin.files)
            kind = "holds images" if images else "is plain text"
            yield data_problem(
                f"data.{name}",
                f"`{origin.path}` {kind}, and the task `{task}` needs {_NEEDS[task]}",
                "give records (.jsonl, .csv, .parquet)"
                + (" or images" if task == "vision" else ", or use `task: pretrain`"),
            )


def _holds(origin: DataSource, known: set[str]) -> bool:
    return any(suffix_of(file) in known for file in origin.files)


def _evaluation(case: Case) -> Iterator[Problem]:
    """Find keys that need evaluation data where none is held out or named."""
    recipe = case.recipe
    if recipe.data.eval:
        if recipe.checkpoint.keep_best and recipe.evaluation.every is None:
            yield Problem(
                key="checkpoint.keep_best",
                message="checkpoints can't be compared: the model is evaluated only at the end",
                hint="`--set evaluation.every=N`, as often as `checkpoint.every`",
            )
        return
    for key, wanted in (
        ("evaluation.every", recipe.evaluation.every),
        ("checkpoint.keep_best", recipe.checkpoint.keep_best),
        ("training_args.eval_on_start", recipe.training_args.get("eval_on_start")),
    ):
        if wanted:
            yield Problem(
                key=key,
                message=f"`{key}` needs data to evaluate on, and there is none",
                hint="hold some out: `--set data.eval=0.02`, or name it: `--set data.eval=PATH`",
            )


def _length_of_run(case: Case) -> Iterator[Problem]:
    if case.recipe.task == "vision" and case.recipe.duration.tokens is not None:
        yield Problem(
            key="duration.tokens",
            message="images have no tokens to count",
            hint="`--set duration.epochs=N` or `--set duration.steps=N`",
        )


def _tokenizer(case: Case) -> Iterator[Problem]:
    model, key = case.recipe.model, "model.tokenizer"
    if case.recipe.task in WITHOUT_TEXT:
        return
    wanted = model.tokenizer or model.name
    if wanted is None:
        yield Problem(
            key=key,
            message="a model from scratch needs a tokenizer",
            hint="a Hub name or a folder, or `{vocab_size: 4096}` to train one on the data",
        )
        return
    entries = case.architecture.get("vocab_size")
    if isinstance(wanted, TokenizerTraining):
        count: int | None = wanted.vocab_size
        said = f"the tokenizer to be trained has {count} entries"
    else:
        folder = local_folder(wanted)
        if folder is None:
            if is_path(wanted):  # of a model's own folder it was said before
                yield Problem(
                    key=key,
                    message=f"there is no tokenizer folder `{wanted}`",
                    hint="a folder written by `save_pretrained`, or a Hub name such as `gpt2`",
                )
            return
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            yield Problem(
                key=key if model.tokenizer else "model.name",
                message=f"the folder `{wanted}` holds no tokenizer",
                hint="`--set model.tokenizer=NAME`: a Hub name, or a folder with tokenizer.json",
            )
            return
        # a model's own may have tokens that it never meets, as Gemma 3's has one for images
        is_own = case.source.file is not None and folder == case.source.folder
        count = None if is_own else _entries(folder / "tokenizer.json")
        said = f"the tokenizer has {count} entries"
        yield from _mask(case, folder)
    if type(entries) is int and count is not None and count > entries:
        loads = case.source.file is not None or model.init == "pretrained"
        yield Problem(
            key=key if loads or not isinstance(wanted, TokenizerTraining) else f"{key}.vocab_size",
            message=f"{said}, the model only {entries}",
            hint="use the model's own tokenizer"
            if loads
            else f"`--set model.architecture.vocab_size={count}`",
        )


def _entries(file: Path) -> int | None:
    """Return one more than the last id of a tokenizer.json, or None if it doesn't say."""
    found = _read(file)
    model = found.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list):
        return None
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = [token.get("id") for token in found.get("added_tokens", []) if isinstance(token, dict)]
    whole = [number for number in (*ids, *added) if type(number) is int]
    return max(whole) + 1 if whole else None


def _mask(case: Case, folder: Path) -> Iterator[Problem]:
    config = _read(folder / "tokenizer_config.json")
    named = config.get("mask_token") or _read(folder / "special_tokens_map.json").get("mask_token")
    if (
        case.recipe.task == "mlm"
        and config.get("tokenizer_class") in _NO_MASK_OF_ITS_OWN
        and not named
    ):
        yield Problem(
            key="model.tokenizer",
            message="the tokenizer has no mask token",
            hint="use the tokenizer of a masked language model, or train one",
        )


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty where it can't be read: a rank says why."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _weights(case: Case) -> Iterator[Problem]:
    folder = case.source.folder
    if case.recipe.model.init != "pretrained" or folder is None:
        return
    files = {file.name for pattern in _WEIGHTS for file in folder.glob(pattern)}
    if files and all(name.startswith("adapter_") for name in files):
        base = _read(folder / "adapter_config.json").get("base_model_name_or_path")
        of = f" of `{base}`" if base else ""
        yield Problem(
            key="model.name",
            message=f"the folder `{case.recipe.model.name}` holds an adapter{of}, not a model",
            hint="name the model itself, or merge the two (`dslm export RUN --merge`)",
        )
    elif not files:
        yield Problem(
            key="model.name",
            message=f"the folder `{case.recipe.model.name}` holds no weights",
            hint="a folder written by `save_pretrained`; `dslm plan FOLDER` plans it without any",
        )


def _sample(case: Case) -> Iterator[Problem]:
    task = case.recipe.task
    if case.recipe.evaluation.sample is not None and (
        HEADS.get(task) != HEADS["pretrain"] or task in WITHOUT_TEXT
    ):
        yield Problem(
            key="evaluation.sample",
            message=f"a model of the task `{task}` continues no prompt",
            hint="leave it out",
        )


CHECKS = (
    Check(name="data that is named", looks_at="data.train", judge=_named, verbs=ONLY_TRAIN),
    Check(
        name="data that is there",
        looks_at="data.train, data.eval",
        judge=_there,
        verbs=TRAINING,
        of_machine=True,
    ),
    Check(
        name="data of the kind that the task reads",
        looks_at="task, data.train, data.eval",
        judge=_of_the_task,
        verbs=TRAINING,
    ),
    Check(
        name="something to evaluate on",
        looks_at="evaluation.every, checkpoint.keep_best, data.eval",
        judge=_evaluation,
        verbs=TRAINING,
    ),
    Check(
        name="a prompt only where one is continued",
        looks_at="evaluation.sample, task",
        judge=_sample,
        verbs=TRAINING,
    ),
    Check(
        name="a duration that the data has",
        looks_at="duration.tokens, task",
        judge=_length_of_run,
        verbs=TRAINING,
    ),
    Check(
        name="a tokenizer that is there and fits",
        looks_at="model.tokenizer, vocab_size",
        judge=_tokenizer,
        verbs=TRAINING,
    ),
    Check(
        name="weights to begin with",
        looks_at="model.name, model.init",
        judge=_weights,
        verbs=ALL,
    ),
)
