"""The shapes in which people keep chats, answers, preferences and prompts, and what is in them.

A record comes in as a file has it; out comes what a task learns from, under dslm's own names, or a
sentence about what is wrong. A shape is recognised by its fields alone, so that a broken record is
said to be a broken one of its shape. Knows no file, no task's tokens and no template.

| kind | what is in it |
|---|---|
| answers | `messages` (and `tools`), or the texts `prompt` and `completion` |
| preferences | `prompt`, `chosen`, `rejected`: texts, or lists of messages |
| labelled | `prompt`, `completion` as above, and `label`, true or false |
| prompts | `prompt`, text or messages; perhaps `answer`, a reference, and other `fields` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dslm.recipe.chats import (
    Message,
    Messages,
    Record,
    chat_of,
    is_message_list,
    message_of,
    tools_of,
)

Kind = Literal["answers", "preferences", "labelled", "prompts"]
Found: TypeAlias = Message

KINDS: dict[str, Kind] = {
    "sft": "answers",
    "seq2seq": "answers",
    "dpo": "preferences",
    "orpo": "preferences",
    "reward": "preferences",
    "kto": "labelled",
    "grpo": "prompts",
}
_NEEDED: dict[Kind, str] = {
    "answers": "chats (`messages`, ShareGPT), instructions with outputs, or `prompt` and "
    "`completion`",
    "preferences": "`chosen` and `rejected` answers",
    "labelled": "`prompt`, `completion` and a `label`, true or false",
    "prompts": "a `prompt`",
}
_SAID: dict[Kind, str] = {
    "answers": "an answer to learn (task sft)",
    "preferences": "a pair of a better and a worse answer (tasks dpo, orpo, reward)",
    "labelled": "an answer labelled good or bad (task kto)",
    "prompts": "a prompt without an answer (task grpo)",
}
_PROMPTS = ("prompt", "question", "problem", "query", "instruction")
_ANSWERS = ("completion", "response", "answer", "output", "solution")
_REFERENCES = ("answer", "solution", "reference", "ground_truth", "target", *_ANSWERS)
_CHOSEN = ("chosen", "chosen_response")
_REJECTED = ("rejected", "rejected_response")
_LABELS = ("label", "kto_tag")
_CHATS = ("messages", "conversations", "conversation")
_TURN = "\n\nAssistant:"  # of Anthropic's HH-RLHF, whose prompts are inside the answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One shape: its name in a recipe, for people, which records have it, and what is in one."""

    name: str
    said: str
    kind: Kind
    has: Callable[[Record], bool]
    read: Callable[[Record], Found | str]


def _first(record: Record, names: tuple[str, ...]) -> str | None:
    """The first of some names that a record has something under."""
    return next((name for name in names if record.get(name) is not None), None)


def _text(record: Record, name: str) -> str | None:
    """Say what is wrong with a field that must be text; None: nothing."""
    value = record.get(name)
    if value is None:
        return f"has no `{name}`"
    if not isinstance(value, str):
        return f"its `{name}` is not text but {type(value).__name__}"
    return None if value.strip() else f"its `{name}` is empty"


def _chat(record: Record) -> Found | str:
    name = _first(record, _CHATS) or _CHATS[0]
    messages = chat_of(record.get(name), name)
    if isinstance(messages, str):
        return messages
    if not any(message["role"] == "assistant" for message in messages):
        return "has no answer of the assistant"
    return _with_tools(record, {"messages": [*_system(record), *messages]})


def _with_tools(record: Record, found: Found) -> Found | str:
    tools = tools_of(record.get("tools") or record.get("functions"))
    if isinstance(tools, str):
        return tools
    return {**found, "tools": tools} if tools else found


def _wrong_system(record: Record) -> str:
    """Say what is wrong with a record's own system text; empty: nothing."""
    given = [name for name in ("system", "system_prompt") if record.get(name)]
    odd = next((name for name in given if not isinstance(record[name], str)), None)
    return f"its `{odd}` is not text but {type(record[odd]).__name__}" if odd else ""


def _system(record: Record) -> Messages:
    text = record.get("system") or record.get("system_prompt")
    return [{"role": "system", "content": text}] if isinstance(text, str) and text.strip() else []


def _alpaca(record: Record) -> Found | str:
    """Alpaca's, and its kin: what is asked, perhaps with an input, as the user's message."""
    asked = _first(record, _PROMPTS) or "instruction"
    answer = _first(record, tuple(n for n in _ANSWERS if n != asked)) or "output"
    wrong = _text(record, asked) or _text(record, answer)
    if wrong:
        return wrong
    more = record.get("input") or record.get("context")
    if more is not None and not isinstance(more, str):
        return f"its `input` is not text but {type(more).__name__}"
    earlier = record.get("history") or []
    if not isinstance(earlier, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        for pair in earlier
    ):
        return "its `history` is not a list of pairs of texts"
    turns = [
        {"role": role, "content": text}
        for pair in earlier
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    said = record[asked] + (f"\n\n{more}" if more and more.strip() else "")
    last = [{"role": "user", "content": said}, {"role": "assistant", "content": record[answer]}]
    return {"messages": [*_system(record), *turns, *last]}


def _completion(record: Record) -> Found | str:
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        before, after = _side(prompt, "prompt", "user"), _side(completion, "completion")
        if isinstance(before, str):
            return before
        if isinstance(after, str):
            return after
        if not after or after[-1]["role"] != "assistant":
            return "its `completion` doesn't end with an answer of the assistant"
        return _with_tools(record, {"messages": [*_system(record), *before, *after]})
    wrong = _text(record, "prompt") or _text(record, "completion")
    return wrong or {"prompt": prompt, "completion": completion}


def _side(value: object, name: str, role: str = "assistant") -> Messages | str:
    """One part of a conversation: messages, one message, or a text that somebody says."""
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value.strip() else f"its `{name}` is empty"
    if isinstance(value, Mapping):
        found = message_of(value, name)
        return found if isinstance(found, str) else [found]
    return chat_of(value, name)


def _preference(record: Record) -> Found | str:
    names = {
        "chosen": _first(record, _CHOSEN) or "chosen",
        "rejected": _first(record, _REJECTED) or "rejected",
    }
    for name in names.values():
        if record.get(name) is None:
            return f"has no `{name}`"
    chosen, rejected = (record[name] for name in names.values())
    if chosen == rejected:
        return f"its `{names['chosen']}` and `{names['rejected']}` are the same"
    asked = _first(record, (*_PROMPTS, "input"))
    texts = any(isinstance(side, str) for side in (chosen, rejected))
    lists = any(isinstance(side, list | Mapping) for side in (chosen, rejected))
    if texts and not lists and not _first(record, _CHATS):
        for name in names.values():
            wrong = _text(record, name)
            if wrong:
                return wrong
        if asked is None:
            return _split(chosen, rejected)
        if asked == "prompt" and isinstance(record["prompt"], str) and not _system(record):
            wrong = _text(record, "prompt")
            return wrong or {"prompt": record["prompt"], "chosen": chosen, "rejected": rejected}
    return _conversations(record, asked, names)


def _conversations(record: Record, asked: str | None, names: dict[str, str]) -> Found | str:
    """A preference between messages: what both sides begin with is the prompt."""
    before: Messages | str = []
    chat = _first(record, _CHATS)
    if chat is not None:
        before = chat_of(record[chat], chat)
    elif asked is not None:
        before = _side(record[asked], asked, "user")
    if isinstance(before, str):
        return before
    sides: list[Messages] = []
    for name in names.values():
        side = _side(record[name], name)
        if isinstance(side, str):
            return side
        sides.append(side[len(before) :] if side[: len(before)] == before else side)
    same = 0
    while same < min(map(len, sides)) and sides[0][same] == sides[1][same]:
        same += 1
    before = [*_system(record), *before, *sides[0][:same]]
    sides = [side[same:] for side in sides]
    for name, side in zip(names.values(), sides, strict=True):
        if len(side) != 1 or side[0]["role"] != "assistant":
            return f"its `{name}` doesn't end with one answer of the assistant"
    if not before:
        return "has no prompt: its two sides have no message in common"
    return _with_tools(record, {"prompt": before, "chosen": sides[0], "rejected": sides[1]})


def _split(chosen: str, rejected: str) -> Found | str:
    """Two texts that begin with the same prompt: HH-RLHF's last turn, or where they differ.

    Source of the second rule: TRL's `extract_prompt` (trl/data_utils.py), which keeps a space with
    the answer that follows it.
    """
    same = next(
        (n for n, pair in enumerate(zip(chosen, rejected, strict=False)) if pair[0] != pair[1]),
        min(len(chosen), len(rejected)),
    )
    turn = chosen[: same + 1].rfind(_TURN)
    if turn >= 0:
        same = turn + len(_TURN)
    elif same and chosen[same - 1] == " ":
        same -= 1
    prompt = chosen[:same]
    if not prompt.strip():
        return "has no `prompt`, and its `chosen` and `rejected` begin with no common one"
    if not chosen[same:].strip() or not rejected[same:].strip():
        return "one of its two answers is only the beginning of the other"
    return {"prompt": prompt, "chosen": chosen[same:], "rejected": rejected[same:]}


def _labelled(record: Record) -> Found | str:
    name = _first(record, _LABELS) or "label"
    label = record[name]
    if label not in (True, False, "true", "false", "True", "False"):
        return f"its `{name}` is neither true nor false"
    good = label in (True, "true", "True")
    read = next((read for names, read in _ANSWERED if _first(record, names)), _alpaca)
    found = read(record)
    if isinstance(found, str) or "messages" not in found:
        return found if isinstance(found, str) else {**found, "label": good}
    messages = found.pop("messages")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return "doesn't end with an answer of the assistant to something"
    return {**found, "prompt": messages[:-1], "completion": messages[-1:], "label": good}


# what a labelled answer is read by, where it has one of these fields; else as Alpaca's
_ANSWERED: tuple[tuple[tuple[str, ...], Callable[[Record], Found | str]], ...] = (
    (_CHATS, _chat),
    (("completion",), _completion),
)


def _prompt(record: Record) -> Found | str:
    """What is asked, with a reference answer where there is one; other fields stay beside it."""
    name = _first(record, (*_PROMPTS, *_CHATS)) or "prompt"
    value = record.get(name)
    if isinstance(value, str):
        if not value.strip():
            return f"its `{name}` is empty"
        asked: str | Messages = value
        if _system(record):
            asked = [*_system(record), {"role": "user", "content": value}]
    else:
        chat = chat_of(value, name)
        if isinstance(chat, str):
            return chat
        if chat[-1]["role"] == "assistant":
            return f"its `{name}` ends with an answer of the assistant: there is nothing to answer"
        asked = [*_system(record), *chat]
    reference = _first(record, tuple(n for n in _REFERENCES if n != name))
    found: Found = {"prompt": asked}
    if reference is not None:
        answer = record[reference]
        if not isinstance(answer, str | int | float | bool | list):
            return f"its `{reference}` is not text but {type(answer).__name__}"
        found["answer"] = answer
    used = {name, reference, "prompt", "answer", "system", "system_prompt", "tools"}
    others = {key: v for key, v in record.items() if key not in used}
    return {**found, "fields": others} if others else found


def _is_prompt_only(record: Record) -> bool:
    chat = _first(record, _CHATS)
    if chat is not None:
        value = record[chat]
        return (
            is_message_list(value)
            and (value[-1].get("role") or value[-1].get("from")) in ("user", "human")
            and not any((m.get("role") or m.get("from")) in ("assistant", "gpt") for m in value)
        )
    return _first(record, _PROMPTS) is not None


def _has(*names: tuple[str, ...]) -> Callable[[Record], bool]:
    return lambda record: all(any(n in record for n in group) for group in names)


def _is_alpaca(record: Record) -> bool:
    return _has(("instruction",), ("output", "response", "completion", "answer"))(record) or _has(
        ("question", "query", "problem", "prompt"), ("answer", "response", "output")
    )(record)


# From the most special shape to the most general one: the first that fits is a record's.
FORMATS = (
    Format(
        name="preference", said="preference pairs", kind="preferences",
        has=_has((*_CHOSEN, *_REJECTED)), read=_preference,
    ),
    Format(
        name="labelled", said="labelled answers", kind="labelled",
        has=lambda r: _has(_LABELS)(r) and (_has(("completion", *_CHATS))(r) or _is_alpaca(r)),
        read=_labelled,
    ),
    Format(
        name="sharegpt", said="ShareGPT", kind="answers",
        has=_has(("conversations", "conversation")), read=_chat,
    ),
    Format(name="messages", said="messages", kind="answers", has=_has(("messages",)), read=_chat),
    Format(
        name="prompt_completion", said="prompts with completions", kind="answers",
        has=_has(("prompt",), ("completion",)), read=_completion,
    ),
    Format(
        name="alpaca", said="Alpaca", kind="answers",
        has=_is_alpaca, read=_alpaca,
    ),
    Format(name="prompts", said="prompts", kind="prompts", has=_is_prompt_only, read=_prompt),
)  # fmt: skip
BY_NAME = {found.name: found for found in FORMATS}


def recognise(record: Record, kind: Kind) -> Format | None:
    """Return the shape of a record, for a task that learns from this kind; None: none is known."""
    asks = _first(record, (*_PROMPTS, *_CHATS)) is not None
    if kind == "prompts" and asks and not _has((*_CHOSEN, *_REJECTED))(record):
        return BY_NAME["prompts"]
    found = next((shape for shape in FORMATS if shape.has(record)), None)
    if found is not None and found.name == "labelled" and kind == "answers":
        # a label beside a chat may be anything's: what a task doesn't learn from is let be
        others = (shape for shape in FORMATS if shape.name != "labelled" and shape.has(record))
        return next(others, found)
    return found


def mapped(record: Record, fields: Mapping[str, str]) -> Record | str:
    """Return a record with fields under dslm's names (`data.fields`), or which one is missing."""
    if not fields:
        return record
    absent = next((theirs for theirs in fields.values() if theirs not in record), None)
    if absent is not None:
        ours = next(ours for ours, theirs in fields.items() if theirs == absent)
        return f"has no field `{absent}` (data.fields.{ours}), only {_names(record)}"
    taken = set(fields.values())
    others = {name: value for name, value in record.items() if name not in taken}
    return {**others, **{ours: record[theirs] for ours, theirs in fields.items()}}


def formed(
    record: Record, kind: Kind, *, name: str = "auto", fields: Mapping[str, str] | None = None
) -> tuple[str, Found | str]:
    """Return the name of a record's shape, "" if it has none, and what is in it or wrong with it.

    Args:
        record: as the file has it; a field that is None is one that it hasn't.
        kind: what the task learns from.
        name: the shape that it must have; auto: the one that it has.
        fields: dslm's names of fields, and the record's own.
    """
    here = mapped({key: v for key, v in record.items() if v is not None}, fields or {})
    if isinstance(here, str):
        return "", here
    shape = recognise(here, kind) if name == "auto" else BY_NAME[name]
    if shape is None:
        return "", f"lacks {_NEEDED[kind]}: its fields are {_names(here)} (data.fields maps names)"
    if shape.kind != kind and not (kind == "prompts" and shape.kind == "answers"):
        return shape.name, f"is {_SAID[shape.kind]}; this task learns from {_NEEDED[kind]}"
    return shape.name, _wrong_system(here) or shape.read(here)


def _names(record: Record) -> str:
    return ", ".join(f"`{name}`" for name in record) or "none"
