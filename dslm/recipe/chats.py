"""Chats as people write them, and the one way in which chat templates take them.

OpenAI's messages (roles, content parts, tool calls, also the older `function_call`) and ShareGPT's
turns (`from`, `value`) in; messages of `role` and `content` out, or a sentence about what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]  # `role`, `content`, perhaps `tool_calls` and the like
Record: TypeAlias = Mapping[str, Any]  # as a file has it
Messages: TypeAlias = list[Message]

# ShareGPT has no standard: these are the names in data sets that Axolotl and LLaMA-Factory read.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_KEPT = ("name", "tool_call_id", "reasoning_content", "thinking", "weight")


def is_message_list(value: object) -> bool:
    """Return whether this is a list of mappings, one at least."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) for m in value)


def chat_of(value: object, field: str) -> Messages | str:
    """Return the messages of a chat, or what is wrong with it.

    Args:
        value: what a record has under `field`.
        field: its name, for people.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return f"its `{field}` is text, not a list of messages"
    if not isinstance(value, list):
        return f"its `{field}` is not a list of messages but {type(value).__name__}"
    if not value:
        return f"its `{field}` is empty"
    found: Messages = []
    for number, message in enumerate(value, 1):
        made = message_of(message, f"{field}[{number}]")
        if isinstance(made, str):
            return made
        found.append(made)
    return found


def message_of(message: object, place: str) -> Message | str:
    """Return one message, or what is wrong with it."""
    if not isinstance(message, Mapping):
        return f"its `{place}` is not a message but {type(message).__name__}"
    given = _either(message, "role", "from")
    if not isinstance(given, str):
        return f"its `{place}` has no `role` (or `from`)"
    said = given.strip().lower()
    role = _ROLES.get(said)
    if role is None:
        return f"its `{place}` has the role `{given[:40]}`: known are {', '.join(sorted(_ROLES))}"
    text, wrong = _content(_either(message, "content", "value"), place)
    if message.get("weight") not in (None, 0, 1):
        wrong = f"its `{place}` has a `weight` that is neither 0 nor 1"
    if wrong:
        return wrong
    calls = _calls(message, said, text, place)
    if isinstance(calls, str):
        return calls
    if said == "function_call":
        text = None
    if text is None and not calls:
        return f"its `{place}` has no `content` (or `value`)"
    if role == "assistant" and not calls and not (text or "").strip():
        return f"its `{place}` is an empty answer"
    kept = {name: message[name] for name in _KEPT if message.get(name) is not None}
    made = {"role": role, "content": text or "", **kept}
    return {**made, "tool_calls": calls} if calls else made


def _either(message: Record, first: str, other: str) -> object:
    """What a message has under one of two names: a table may have both, nothing in the other."""
    value = message.get(first)
    return message.get(other) if value is None else value


def _content(value: object, place: str) -> tuple[str | None, str]:
    """The text of a message's content, and what is wrong with it."""
    if value is None or isinstance(value, str):
        return value, ""
    if isinstance(value, list):
        texts = []
        for part in value:
            if isinstance(part, str):
                texts.append(part)
                continue
            kind = part.get("type") if isinstance(part, Mapping) else None
            text = part.get("text") if isinstance(part, Mapping) else None
            if not isinstance(text, str):
                what = f"of type `{kind}`" if isinstance(kind, str) else "without text"
                return None, f"its `{place}` has a part {what}: only text can be learnt"
            texts.append(text)
        return "".join(texts), ""
    return None, f"its `{place}` has a content that is not text but {type(value).__name__}"


def _calls(message: Record, said: str, text: str | None, place: str) -> Messages | str:
    """The tool calls of a message, their arguments as mappings, as templates want them."""
    given = message.get("tool_calls") or []
    if message.get("function_call") is not None:
        given = [message["function_call"]]
    elif said == "function_call":
        try:
            given = json.loads(text or "")
        except (ValueError, RecursionError):
            return f"its `{place}` is a call that is not JSON"
        given = given if isinstance(given, list) else [given]
    if not isinstance(given, list):
        return f"its `{place}` has `tool_calls` that are no list"
    found = []
    for call in given:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str):
            return f"its `{place}` has a tool call without a function's name"
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                return f"its `{place}` calls `{name}` with arguments that are not JSON"
        if not isinstance(arguments, Mapping):
            return f"its `{place}` calls `{name}` with arguments that are no object"
        kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        found.append(
            {**kept, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        )
    return found


def tools_of(value: object) -> Messages | str:
    """Return the tools that a record offers, as JSON schemas, or what is wrong with them."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return "its `tools` are not JSON"
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        return "its `tools` are not a list of functions"
    for tool in value:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return "one of its `tools` has no name"
    return [
        dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}
        for tool in value
    ]
