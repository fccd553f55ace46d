"""Data: tokenising and packing against the example script's way; packing; the loader."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from benchmarks.commands import BIN, checked
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Recipe
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history

REPEATS = 5
LENGTH = 1024
TEXT_REPEATS = 4  # the standard library, so many times
BATCHES = 300
_T = TypeVar("_T")


def _recipe(*overrides: str) -> Recipe:
    return load_recipe("quickstart", list(overrides)).recipe


def _corpus(folder: Path) -> tuple[Path, int]:
    """Python's own sources as a jsonl file: its path and the bytes of text in it."""
    from dslm.recipe.data_paths import stdlib_files

    file, size = folder / "corpus.jsonl", 0
    with file.open("w") as stream:
        for number in range(TEXT_REPEATS):
            for source in stdlib_files():
                text = source.read_text(errors="ignore")
                if text.strip():
                    stream.write(json.dumps({"text": f"# {number}\n{text}"}) + "\n")
                    size += len(text)
    return file, size


def _ours(file: Path, tokenizer: Any, cache: Path) -> tuple[float, int, float]:
    """Seconds, tokens and share of the samples that is filled."""
    from dslm.worker.data.prepare import prepare
    from dslm.worker.tasks import task_of

    os.environ["XDG_CACHE_HOME"] = str(cache)
    recipe = _recipe(
        f"data.train={file}", "data.eval=0", "data.max_documents=null",
        f"data.sequence_length={LENGTH}", "model.architecture.max_position_embeddings=1024",
    )  # fmt: skip
    start = time.perf_counter()
    prepared = prepare(recipe, task_of(recipe).encoder(recipe, tokenizer), tokenizer)
    train = prepared.statistics["train"]
    return time.perf_counter() - start, train["tokens"], train["efficiency"]


def _example_script(
    file: Path, tokenizer: Any, cache: Path, processes: int | None
) -> tuple[float, int]:
    """Seconds and tokens of the way of transformers' run_clm example: map, then group texts."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()

    def group(columns: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(itertools.chain(*lists)) for name, lists in columns.items()}
        total = len(joined["input_ids"]) // LENGTH * LENGTH
        found = {
            name: [values[i : i + LENGTH] for i in range(0, total, LENGTH)]
            for name, values in joined.items()
        }
        found["labels"] = found["input_ids"].copy()
        return found

    start = time.perf_counter()
    data = load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache))
    tokenised = data.map(
        lambda rows: tokenizer(rows["text"]),
        batched=True, remove_columns=["text"], num_proc=processes,
    )  # fmt: skip
    grouped = tokenised.map(group, batched=True, num_proc=processes)
    return time.perf_counter() - start, len(grouped) * LENGTH


def _alone(measure: Callable[..., _T], *arguments: Any) -> _T:
    """A measurement in a process of its own: once a process has forked (as `datasets.map` does
    with several processes), tokenizers uses one thread in it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def _loader_rate() -> float:
    """Samples per second that the loader of one rank delivers, as batches of the quickstart."""
    from torch.utils.data import DataLoader

    from dslm.worker.data.order import GlobalBatchSampler, Share
    from dslm.worker.data.prepare import prepare
    from dslm.worker.data.tokenizer import load_tokenizer
    from dslm.worker.tasks import task_of

    recipe = _recipe()
    task = task_of(recipe)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(recipe, Path(folder))
        data = prepare(recipe, task.encoder(recipe, tokenizer), tokenizer).train
    micro, ranks = 8, 2
    share = Share(world_size=ranks)
    sampler = GlobalBatchSampler(
        count=len(data), seed=1, steps=BATCHES, micro_batch=micro, accumulation=1, share=share
    )
    collate = task.collator(recipe, tokenizer, None)
    start = time.perf_counter()
    count = sum(
        len(batch["input_ids"])
        for batch in DataLoader(data, batch_sampler=sampler, collate_fn=collate)
    )
    return count / (time.perf_counter() - start)


def _consumed() -> float:
    """Samples per second and rank that the quickstart trains on."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = ("duration.steps=30", "data.eval=0", "checkpoint.every=null")
        sets = [word for setting in settings for word in ("-s", setting)]
        argv = [str(BIN / "dslm"), "train", "quickstart", "-o", str(run), *sets]
        checked(argv)
        steps = read_history(RunDirectory(run)).steps
    return median(step.samples_per_second or 0.0 for step in steps[1:]) / 2


def report() -> str:
    """The tables."""
    from dslm.worker.data.tokenizer import train_tokenizer

    rows: dict[str, list[float]] = {"dslm": [], "example": [], "example, 2 processes": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, size = _corpus(folder)
        texts = (json.loads(line)["text"] for line in file.open())
        tokenizer = train_tokenizer(itertools.islice(texts, 500), 4096)
        filled = 0.0
        for repeat in range(REPEATS):
            seconds, tokens, filled = _alone(_ours, file, tokenizer, folder / f"ours-{repeat}")
            rows["dslm"].append(tokens / seconds)
            for key, processes in (("example", None), ("example, 2 processes", 2)):
                cache = folder / f"{key}-{repeat}"
                seconds, tokens = _alone(_example_script, file, tokenizer, cache, processes)
                rows[key].append(tokens / seconds)
    delivered, consumed = _loader_rate(), _consumed()
    ratios = {  # of neighbours in time: the machine's speed is not always the same
        way: median(a / b for a, b in zip(rows["dslm"], found, strict=True))
        for way, found in rows.items()
    }
    lines = [
        "## Data\n",
        f"Tokenising and packing {size / 1e6:.0f} MB of Python sources to {LENGTH} tokens, "
        f"medians of {REPEATS} alternating runs and of their ratios; the other way is that of "
        "transformers' language modelling example: `datasets.map` with the tokenizer, then with "
        "grouping.\n",
        "| way | tokens/s | dslm's ratio to it |",
        "|---|---|---|",
        *(f"| {k} | {median(v):,.0f} | {ratios[k]:.2f} |" for k, v in rows.items()),
        f"\nOf the packed samples {filled:.2%} is filled, with no document split that fits.\n",
        "| the loader of one rank delivers | the quickstart trains on, per rank | ratio |",
        "|---|---|---|",
        f"| {delivered:,.0f} samples/s | {consumed:.1f} samples/s | {delivered / consumed:.0f} |",
    ]
    return "\n".join(lines) + "\n"
