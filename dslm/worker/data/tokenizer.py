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
from dslm.files import copy_folder, expanded, is_file
from dslm.presets import preset_path
from dslm.recipe.load import load_recipe
from dslm.recipe.schema import Recipe, TokenizerTraining
from dslm.worker.data.prepare import cache_folder, source_digest, training_records
from dslm.worker.data.records import BadRecords

# Roles and turns as in OpenAI's ChatML, tools and calls as in Hermes' function calling, which many
# open chat models are trained on. A tokenizer whose own end is another token gets that too, so that
# generation stops after an answer.
CHATML = (
    "{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n\\n<tools>\\n' }}"
    "{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}"
    "{{- '</tools><|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}"
    "{% generation %}{{- message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>' }}"
    "{%- if eos_token is defined and eos_token and eos_token != '<|im_end|>' %}{{- eos_token }}"
    "{%- endif %}{{- '\\n' }}{% endgeneration %}"
    "{%- else %}{{- message.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
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
    tokenizer = _loaded(recipe, folder)
    if recipe.data.chat_template is not None:
        tokenizer.chat_template = template_of(recipe.data.chat_template)
    return tokenizer


def template_of(name: str) -> str:
    """The text of a chat template: in a file, dslm's own `chatml`, or of a preset's tokenizer.

    Raises:
        RecipeError: there is no such thing, or it can't be read.
    """
    where = Where(key="data.chat_template")
    if name == "chatml":
        return CHATML
    path = expanded(name)
    if is_file(path):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as failure:
            raise RecipeError(f"`{name}` can't be read as text: {failure}", where=where) from None
    if preset_path("recipes", name, ".yaml") is None:
        raise RecipeError(
            f"`{name}` is no template file, and no preset",
            where=where,
            hint="a file, `chatml`, or a preset such as `qwen3-8b`",
        )
    model = load_recipe(name).recipe.model
    found = _from_pretrained(str(model.name), model.revision, trusted=False).chat_template
    if not isinstance(found, str):
        raise RecipeError(f"the tokenizer of `{name}` has no chat template", where=where)
    return found


def _loaded(recipe: Recipe, folder: Path) -> PreTrainedTokenizerBase:
    wanted = recipe.model.tokenizer or recipe.model.name
    if isinstance(wanted, TokenizerTraining):
        return _trained(recipe, wanted, folder)
    if wanted is None:
        raise RecipeError(
            "a model from scratch needs a tokenizer",
            where=Where(key="model.tokenizer"),
            hint="a Hub name or a folder, or `{vocab_size: 4096}` to train one on the data",
        )
    model = recipe.model
    tokenizer = _from_pretrained(wanted, model.revision, trusted=model.trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_pretrained(wanted: str, revision: str, *, trusted: bool) -> PreTrainedTokenizerBase:
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            wanted, revision=revision, trust_remote_code=trusted
        )
    except (OSError, ValueError) as failure:
        raise RecipeError(
            f"the tokenizer `{wanted}` can't be loaded: {str(failure).splitlines()[0]}",
            where=Where(key="model.tokenizer"),
            hint="a Hub name (is there a network, is `hf auth login` needed?) or a local folder",
        ) from failure
    return found


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
            copy_folder(kept, folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _train(recipe: Recipe, wanted: TokenizerTraining) -> PreTrainedTokenizerFast:
    unseen = BadRecords(fatal=False)  # told when the data itself is prepared
    records = islice(training_records(recipe, unseen), wanted.documents)
    texts = (text for record in records for text in texts_in(record.values))
    return train_tokenizer(texts, wanted.vocab_size)
