"""Chats to tokens by a tokenizer's own template, with a mask of what is learnt.

The template is rendered to text first, and its answers are found in the text: by the template's
`{% generation %}` marks, or by rendering the chat with and without each answer. A chat that is too
long loses whole turns from its end and is rendered again, since templates write the last turn of a
chat otherwise than those before it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from dslm.errors import RecipeError, Where
from dslm.recipe.chats import Messages
from dslm.worker.data.records import first_line
from dslm.worker.data.tokenizer import token_ids

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]
Masked = tuple[list[int], list[int]]  # tokens, and 1 for each that is learnt


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """A chat, the tools that it may call, and which of its answers are learnt."""

    messages: Messages
    tools: list[Any] | None = None
    answers: str = "all"  # or `last`


def chats_to_tokens(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    length: int | None = None,
    notes: Counter[str] | None = None,
) -> list[Masked | str]:
    """Tokens and mask of each chat, or what is wrong with it; all are encoded together.

    Args:
        tokenizer: with a chat template.
        chats: the chats.
        length: the most tokens that a chat may have; None: any number.
        notes: where chats that lost turns are counted.

    Raises:
        RecipeError: the tokenizer has no template.
    """
    check_template(tokenizer)
    texts = [_rendered(tokenizer, chat) for chat in chats]
    found = _encoded(tokenizer, texts)
    if length is None:
        return found
    for place, masked in enumerate(found):
        if not isinstance(masked, str) and len(masked[0]) > length:
            found[place] = _cut(tokenizer, chats[place], masked, length)
            if notes is not None and not isinstance(found[place], str):
                notes["cut"] += 1
    return found


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokenizer can write chats.

    Raises:
        RecipeError: it has no chat template; says the ways out.
    """
    if tokenizer.chat_template is None:
        raise RecipeError(
            "the data are chats, and the tokenizer has no chat template",
            where=Where(key="data.chat_template"),
            hint="`data.chat_template`: `chatml`, a preset's name or a file; or use a chat model's "
            "tokenizer (`model.tokenizer`), or data with `prompt` and `completion`",
        )


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> tuple[str, list[Span]] | str:
    """The text of a chat and where in it something is learnt."""
    try:
        template = tokenizer.get_chat_template(None, chat.tools)
        if _GENERATION.search(template):
            text, spans = _marked(tokenizer, template, chat)
        else:
            text, spans = _compared(tokenizer, chat)
    except _Changed as failure:
        return str(failure)
    except Exception as failure:  # noqa: BLE001 - templates are programs: they raise anything
        return f"the chat template refuses it: {first_line(failure)}"
    lost = next((name for name in _functions(chat) if name not in text), None)
    if lost is not None:
        return f"the chat template doesn't write its tool `{lost}`: what it calls would be lost"
    answers = [message for message in chat.messages if message["role"] == "assistant"]
    if len(spans) < len(answers):
        return (
            f"the chat template marks {len(spans)} of its {len(answers)} answers as generated: "
            "what the others teach would be lost"
        )
    if len(spans) == len(answers):  # a mark may be split, around thoughts for example
        pairs = zip(spans, answers, strict=True)
        spans = [span for span, answer in pairs if answer.get("weight", 1)]
    return text, spans[-1:] if chat.answers == "last" else spans


def _functions(chat: Chat) -> Iterator[str]:
    """Yield the names of the tools of a chat and of the calls in it."""
    calls = (call for message in chat.messages for call in message.get("tool_calls", ()))
    for tool in (*(chat.tools or ()), *calls):
        yield str(tool["function"]["name"])


class _Changed(ValueError):
    """A template that writes what stands before an answer otherwise once the answer is there."""


def _marked(
    tokenizer: PreTrainedTokenizerBase, template: str, chat: Chat
) -> tuple[str, list[Span]]:
    texts, spans = render_jinja_template(
        conversations=[chat.messages],
        tools=chat.tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return texts[0], [(start, end) for start, end in spans[0] if start < end]


def _compared(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> tuple[str, list[Span]]:
    """Find each answer as what a chat has more with it than before it."""

    def render(count: int, *, prompt: bool = False) -> str:
        return str(
            tokenizer.apply_chat_template(
                chat.messages[:count],
                tools=chat.tools,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        )

    text, spans = render(len(chat.messages)), []
    for number, message in enumerate(chat.messages):
        if message["role"] != "assistant":
            continue
        before = render(number, prompt=True) if number else ""
        if not text.startswith(before):
            raise _Changed(
                "the chat template renders earlier messages differently when an answer follows"
            )
        after = render(number + 1)
        if not text.startswith(after):
            after = _as_earlier(text, before, after, str(message["content"]).strip())
        spans.append((len(before), len(after)))
    return text, spans


def _as_earlier(text: str, before: str, last: str, content: str) -> str:
    """The beginning of a chat up to an answer that it writes otherwise where others follow.

    Some templates drop or add thoughts in all answers but the last (Qwen3's): what follows the
    answer's own words where it is the last one ends it here too.
    """
    place = last.rfind(content)
    end = last[place + len(content) :]
    start = text.find(content, len(before))
    if not content or place < 0 or start < 0 or not text.startswith(end, start + len(content)):
        raise _Changed("the chat template renders an answer differently when other turns follow")
    return text[: start + len(content) + len(end)]


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, list[Span]] | str]
) -> list[Masked | str]:
    good = [found for found in texts if not isinstance(found, str)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        made = iter([_by_pieces(tokenizer, text, spans) for text, spans in good])
    else:
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch([text for text, _ in good], add_special_tokens=False)
        made = iter(
            (encoding.ids, _mask(text, spans, encoding.offsets))
            for (text, spans), encoding in zip(good, encodings, strict=True)
        )
    return [found if isinstance(found, str) else next(made) for found in texts]


def _mask(text: str, spans: Sequence[Span], offsets: Sequence[Span]) -> list[int]:
    """Which tokens lie in a span; white space before it may be part of its first token."""
    inside = np.zeros(len(text) + 1, dtype=bool)
    for start, end in spans:
        inside[start:end] = True
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    first, last = places[:, 0], np.maximum(places[:, 1] - 1, places[:, 0])
    learnt = inside[first] & inside[last]
    for start, _ in spans:
        for token in np.flatnonzero((first < start) & (last >= start)):
            learnt[token] = not text[first[token] : start].strip()
    return [int(value) for value in learnt]


def _by_pieces(tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span]) -> Masked:
    """Encode what is learnt and what is not apart: for tokenizers that know no offsets."""
    ids: list[int] = []
    mask: list[int] = []
    borders = [0, *(place for span in spans for place in span), len(text)]
    for number, (start, end) in enumerate(pairwise(borders)):
        piece = token_ids(tokenizer, [text[start:end]])[0] if start < end else []
        ids += piece
        mask += [number % 2] * len(piece)
    return ids, mask


def _cut(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, masked: Masked, length: int
) -> Masked | str:
    """A chat of as many whole turns as there is room for; one turn too long is cut itself."""
    ends = [n + 1 for n, message in enumerate(chat.messages) if message["role"] == "assistant"]
    for end in reversed(ends[:-1]):
        short = Chat(messages=chat.messages[:end], tools=chat.tools, answers=chat.answers)
        found = _encoded(tokenizer, [_rendered(tokenizer, short)])[0]
        if isinstance(found, str):
            return found
        if len(found[0]) <= length:
            return found if any(found[1]) else "has no answer to learn in what there is room for"
        masked = found
    ids, mask = masked[0][:length], masked[1][:length]
    if not any(mask):
        return f"what stands before its first answer fills {length} tokens (data.sequence_length)"
    return ids, mask
