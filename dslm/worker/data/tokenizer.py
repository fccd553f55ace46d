"""The tokenizer of a run: the model's own, another one, or one trained on the training data."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dslm.errors import RecipeError, Where
from dslm.recipe.schema import Recipe, TokenizerTraining
from dslm.worker.data.prepare import cache_folder, source_digest, training_records
from dslm.worker.data.records import BadRecords

END = "<|endoftext|>"
PAD = "<|pad|>"
MASK = "<|mask|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer (GPT-2's kind) of at most `vocab_size` entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=PAD, mask_token=MASK
    )


def load_tokenizer(recipe: Recipe, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe; a trained one is made once, by the first rank of a host that asks.

    Args:
        recipe: the resolved recipe.
        folder: where a trained tokenizer is kept, the run's own folder.

    Raises:
        RecipeError: it can't be loaded.
    """
    wanted = recipe.model.tokenizer or recipe.model.name
    if isinstance(wanted, TokenizerTraining):
        return _trained(recipe, wanted, folder)
    if wanted is None:
        raise RecipeError(
            "a model from scratch needs a tokenizer",
            where=Where(key="model.tokenizer"),
            hint="a Hub name or a folder, or `{vocab_size: 4096}` to train one on the data",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            wanted,
            revision=recipe.model.revision,
            trust_remote_code=recipe.model.trust_remote_code,
        )
    except (OSError, ValueError) as failure:
        raise RecipeError(
            f"the tokenizer `{wanted}` can't be loaded: {str(failure).splitlines()[0]}",
            where=Where(key="model.tokenizer"),
            hint="a Hub name (is there a network, is `hf auth login` needed?) or a local folder",
        ) from failure
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def texts_in(values: object) -> Iterator[str]:
    """Yield every text in a record, however deep."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            inside = value.values() if isinstance(value, dict) else value
            waiting += reversed(list(inside))


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The tokens of many texts, without special ones: on all cores, and nothing else made."""
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return list(tokenizer(texts, add_special_tokens=False)["input_ids"])
    backend.no_truncation()
    backend.no_padding()
    return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _trained(recipe: Recipe, wanted: TokenizerTraining, folder: Path) -> PreTrainedTokenizerBase:
    """A trained tokenizer; training it on the same data a second time is a copy."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tokenizer.json").is_file():
            name = source_digest(recipe, wanted.model_dump())
            kept = cache_folder() / "tokenizers" / name
            if not kept.is_dir():
                partial = kept.with_name(f".{name}.{os.getpid()}")
                _train(recipe, wanted).save_pretrained(partial)
                try:
                    partial.replace(kept)
                except OSError:  # somebody else was faster, and made the same
                    shutil.rmtree(partial)
            shutil.copytree(kept, folder, dirs_exist_ok=True)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _train(recipe: Recipe, wanted: TokenizerTraining) -> PreTrainedTokenizerFast:
    unseen = BadRecords(fatal=False)  # told when the data itself is prepared
    records = islice(training_records(recipe, unseen), wanted.documents)
    texts = (text for record in records for text in texts_in(record.values))
    return train_tokenizer(texts, wanted.vocab_size)
