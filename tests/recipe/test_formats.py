"""The shapes in which people keep data: each is recognised, or refused by what is wrong with it."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from dslm.recipe.formats import BY_NAME, KINDS, formed
from dslm.recipe.schema import Format, Task

USER = {"role": "user", "content": "2 + 2?"}
SAID = {"role": "assistant", "content": "4"}
ASKED, GAVE = {"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}
CALL = {"name": "add", "arguments": {"a": 2, "b": 2}}
CALLS = {"tool_calls": [{"type": "function", "function": CALL}]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CHAT = {"messages": [USER, SAID]}
PAIR = {"prompt": [USER], "chosen": [SAID], "rejected": [{**SAID, "content": "5"}]}
TEXTS = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}

# name: (task, record, shape, what is in it)
GOOD: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "OpenAI's messages": ("sft", CHAT, "messages", CHAT),
    "a system message": (
        "sft", {"messages": [{"role": "system", "content": "Be brief."}, USER, SAID]}, "messages",
        {"messages": [{"role": "system", "content": "Be brief."}, USER, SAID]},
    ),
    "a developer's message": (
        "sft", {"messages": [{"role": "developer", "content": "Hm."}, USER, SAID]}, "messages",
        {"messages": [{"role": "system", "content": "Hm."}, USER, SAID]},
    ),
    "content in parts": (
        "sft", {"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]},
                             SAID]}, "messages", CHAT,
    ),
    "tool calls with arguments as text": (
        "sft",
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function",
             "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "4"}, SAID], "tools": [TOOL]},
        "messages",
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": CALL}]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"}, SAID], "tools": [TOOL]},
    ),
    "the older function_call": (
        "sft",
        {"messages": [USER, {"role": "assistant", "function_call": CALL}],
         "functions": [TOOL["function"]]},
        "messages", {"messages": [USER, {"role": "assistant", "content": "", **CALLS}],
                     "tools": [TOOL]},
    ),
    "an answer of no weight": (
        "sft", {"messages": [USER, {**SAID, "weight": 0}, USER, SAID]}, "messages",
        {"messages": [USER, {**SAID, "weight": 0}, USER, SAID]},
    ),
    "columns that are empty": ("sft", {**CHAT, "tools": None, "prompt": None}, "messages", CHAT),
    "ShareGPT": ("sft", {"conversations": [ASKED, GAVE]}, "sharegpt", CHAT),
    "ShareGPT with a system text": (
        "sft", {"conversations": [ASKED, GAVE], "system": "Be brief."}, "sharegpt",
        {"messages": [{"role": "system", "content": "Be brief."}, USER, SAID]},
    ),
    "ShareGPT with roles": ("sft", {"conversations": [USER, SAID]}, "sharegpt", CHAT),
    "ShareGPT in one column": (
        "sft", {"conversation": '[{"from": "human", "value": "2 + 2?"}, '
                                '{"from": "gpt", "value": "4"}]'}, "sharegpt", CHAT,
    ),
    "ShareGPT with a call and what came of it": (
        "sft",
        {"conversations": [ASKED, {"from": "function_call",
                                   "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
                           {"from": "observation", "value": "4"}, GAVE],
         "tools": '[{"name": "add", "parameters": {}}]'},
        "sharegpt",
        {"messages": [USER, {"role": "assistant", "content": "", **CALLS},
                      {"role": "tool", "content": "4"}, SAID], "tools": [TOOL]},
    ),
    "turns with the fields of all in each, as tables have them": (
        "sft", {"conversations": [{**ASKED, "role": None, "content": None},
                                  {**SAID, "from": None, "value": None, "weight": None}]},
        "sharegpt", CHAT,
    ),
    "ShareGPT's call in capitals": (
        "sft", {"conversations": [ASKED, {"from": "Function_Call", "value":
                                          '{"name": "add", "arguments": {"a": 2, "b": 2}}'}]},
        "sharegpt", {"messages": [USER, {"role": "assistant", "content": "", **CALLS}]},
    ),
    "Alpaca": (
        "sft", {"instruction": "Add.", "input": "2 and 2", "output": "4"}, "alpaca",
        {"messages": [{"role": "user", "content": "Add.\n\n2 and 2"}, SAID]},
    ),
    "Alpaca without an input": (
        "sft", {"instruction": "2 + 2?", "input": "", "output": "4"}, "alpaca", CHAT,
    ),
    "Alpaca with history": (
        "sft", {"instruction": "2 + 2?", "output": "4", "history": [["Hi", "Hello."]]}, "alpaca",
        {"messages": [{"role": "user", "content": "Hi"},
                      {"role": "assistant", "content": "Hello."}, USER, SAID]},
    ),
    "Dolly": (
        "sft", {"instruction": "2 + 2?", "context": "", "response": "4", "category": "sums"},
        "alpaca", CHAT,
    ),
    "questions and answers": ("sft", {"question": "2 + 2?", "answer": "4"}, "alpaca", CHAT),
    "prompt and completion": (
        "sft", {"prompt": "2 + 2 =", "completion": " 4"}, "prompt_completion",
        {"prompt": "2 + 2 =", "completion": " 4"},
    ),
    "prompt and completion as messages": (
        "sft", {"prompt": [USER], "completion": [SAID]}, "prompt_completion", CHAT,
    ),
    "a chat with a label of something else": ("sft", {**CHAT, "label": "sums"}, "messages", CHAT),
    "a preference in texts": ("dpo", TEXTS, "preference", TEXTS),
    "a preference in messages": ("dpo", PAIR, "preference", PAIR),
    "a preference without a prompt, in texts": (
        "dpo", {"chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5"}, "preference", TEXTS,
    ),
    "a preference without a prompt, in messages": (
        "dpo", {"chosen": [USER, SAID], "rejected": [USER, {**SAID, "content": "5"}]},
        "preference", PAIR,
    ),
    "HH-RLHF": (
        "dpo", {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected":
                "\n\nHuman: 2 + 2?\n\nAssistant: 5"}, "preference",
        {"prompt": "\n\nHuman: 2 + 2?\n\nAssistant:", "chosen": " 4", "rejected": " 5"},
    ),
    "UltraFeedback": (
        "dpo", {"prompt": "2 + 2?", "chosen": [USER, SAID],
                "rejected": [USER, {**SAID, "content": "5"}], "score_chosen": 8.0},
        "preference", PAIR,
    ),
    "Orca's pairs": (
        "dpo", {"system": "", "question": "2 + 2?", "chosen": "4", "rejected": "5"}, "preference",
        PAIR,
    ),
    "ShareGPT's pairs": (
        "dpo", {"conversations": [ASKED], "chosen": GAVE, "rejected": {**GAVE, "value": "5"}},
        "preference", PAIR,
    ),
    "a pair for a reward model": ("reward", TEXTS, "preference", TEXTS),
    "a labelled completion": (
        "kto", {"prompt": "2 + 2 =", "completion": " 4", "label": True}, "labelled",
        {"prompt": "2 + 2 =", "completion": " 4", "label": True},
    ),
    "a labelled chat": (
        "kto", {**CHAT, "label": False}, "labelled",
        {"prompt": [USER], "completion": [SAID], "label": False},
    ),
    "a labelled chat of LLaMA-Factory": (
        "kto", {"conversations": [ASKED, GAVE], "kto_tag": "true"}, "labelled",
        {"prompt": [USER], "completion": [SAID], "label": True},
    ),
    "a labelled output of LLaMA-Factory": (
        "kto", {"instruction": "2 +", "input": "2?", "output": "4", "kto_tag": False}, "labelled",
        {"prompt": [{"role": "user", "content": "2 +\n\n2?"}], "completion": [SAID],
         "label": False},
    ),
    "a labelled response": (
        "kto", {"prompt": "2 + 2?", "response": "4", "label": True}, "labelled",
        {"prompt": [USER], "completion": [SAID], "label": True},
    ),
    "an output with a label of something else": (
        "sft", {"instruction": "2 + 2?", "output": "4", "label": "sums"}, "alpaca", CHAT,
    ),
    "a prompt": ("grpo", {"prompt": "2 + 2 ="}, "prompts", {"prompt": "2 + 2 ="}),
    "a prompt in messages, with a reference": (
        "grpo", {"prompt": [USER], "solution": "4"}, "prompts", {"prompt": [USER], "answer": "4"},
    ),
    "a question with a number": (
        "grpo", {"question": "2 + 2?", "answer": 4}, "prompts", {"prompt": "2 + 2?", "answer": 4},
    ),
    "a question with fields beside it": (
        "grpo", {"question": "2 + 2?", "solution": "4", "level": 1, "tests": ["a"]}, "prompts",
        {"prompt": "2 + 2?", "answer": "4", "fields": {"level": 1, "tests": ["a"]}},
    ),
    "one pair for text to text": (
        "seq2seq", {"prompt": "a", "completion": "b"}, "prompt_completion",
        {"prompt": "a", "completion": "b"},
    ),
}  # fmt: skip

# name: (task, record, in what is said)
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "fields that nobody knows": ("sft", {"a": 1, "b": 2}, "its fields are `a`, `b`"),
    "nothing": ("sft", {}, "its fields are none"),
    "messages that are text": ("sft", {"messages": "hello"}, "is text, not a list of messages"),
    "no messages": ("sft", {"messages": []}, "its `messages` is empty"),
    "a message that is text": ("sft", {"messages": ["hello"]}, "`messages[1]` is not a message"),
    "a message without a role": ("sft", {"messages": [{"content": "a"}, SAID]}, "no `role`"),
    "a role that nobody knows": (
        "sft", {"messages": [USER, {"role": "wizard", "content": "4"}]},
        "`messages[2]` has the role `wizard`",
    ),
    "a message without content": ("sft", {"messages": [USER, {"role": "assistant"}]}, "`content`"),
    "an empty answer": ("sft", {"messages": [USER, {**SAID, "content": " "}]}, "an empty answer"),
    "an image": (
        "sft", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, SAID]},
        "a part of type `image_url`",
    ),
    "a weight between": (
        "sft", {"messages": [USER, {**SAID, "weight": 0.5}]}, "`weight` that is neither 0 nor 1",
    ),
    "a weight that is text": ("sft", {"messages": [USER, {**SAID, "weight": "0"}]}, "`weight`"),
    "a system text that is a list": ("sft", {**CHAT, "system": ["a"]}, "`system` is not text"),
    "no answer": ("sft", {"conversations": [ASKED]}, "no answer of the assistant"),
    "a turn without a value": ("sft", {"conversations": [{"from": "human"}, GAVE]}, "`value`"),
    "a call that is not JSON": (
        "sft", {"conversations": [ASKED, {"from": "function_call", "value": "add(2"}]}, "not JSON",
    ),
    "arguments that are not JSON": (
        "sft", {"messages": [USER, {"role": "assistant", "tool_calls": [
            {"function": {"name": "add", "arguments": "{2"}}]}]}, "calls `add` with arguments",
    ),
    "a call of nothing": (
        "sft", {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]},
        "without a function's name",
    ),
    "tools that are not JSON": ("sft", {**CHAT, "tools": "add"}, "`tools` are not JSON"),
    "tools without a name": ("sft", {**CHAT, "tools": [{"x": 1}]}, "`tools` has no name"),
    "an empty output": ("sft", {"instruction": "a", "output": ""}, "`output` is empty"),
    "an output that is a number": ("sft", {"instruction": "a", "output": 4}, "not text but int"),
    "history that is no list of pairs": (
        "sft", {"instruction": "a", "output": "b", "history": [["c"]]}, "`history` is not a list",
    ),
    "a completion that is a list of texts": (
        "sft", {"prompt": "a", "completion": ["b"]}, "`completion[1]` is not a message",
    ),
    "a pair where an answer is learnt": ("sft", TEXTS, "a better and a worse answer"),
    "a prompt where an answer is learnt": ("sft", {"prompt": "a"}, "a prompt without an answer"),
    "an answer where a pair is": ("dpo", CHAT, "is an answer to learn"),
    "only the better answer": ("dpo", {"prompt": "a", "chosen": "b"}, "has no `rejected`"),
    "no worse answer": ("dpo", {**TEXTS, "rejected": None}, "has no `rejected`"),
    "two equal answers": ("dpo", {**TEXTS, "rejected": " 4"}, "are the same"),
    "answers with nothing in common": ("dpo", {"chosen": "a", "rejected": "b"}, "no `prompt`"),
    "an answer that is the other's beginning": (
        "dpo", {"chosen": "2 + 2 = 4", "rejected": "2 + 2"}, "only the beginning of the other",
    ),
    "sides with nothing in common": (
        "dpo", {"chosen": [SAID], "rejected": [{**SAID, "content": "5"}]}, "has no prompt",
    ),
    "a side that ends with the user": (
        "dpo", {"prompt": [USER], "chosen": [SAID, USER], "rejected": [SAID]},
        "doesn't end with one answer",
    ),
    "a label that is a number": (
        "kto", {"prompt": "a", "completion": "b", "label": 3}, "neither true nor false",
    ),
    "an answer without a label": ("kto", CHAT, "is an answer to learn"),
    "an empty prompt": ("grpo", {"prompt": " "}, "`prompt` is empty"),
    "a prompt that is answered": ("grpo", {"prompt": [USER, SAID]}, "there is nothing to answer"),
    "a reference that is an object": (
        "grpo", {"prompt": "a", "answer": {"x": 1}}, "`answer` is not text but dict",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_shape_is_recognised_and_read(name: str) -> None:
    task, record, shape, content = GOOD[name]
    assert formed(record, KINDS[task]) == (shape, content)


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_record_is_said(name: str) -> None:
    task, record, said = BAD[name]
    found = formed(record, KINDS[task])[1]
    assert isinstance(found, str)
    assert said in found


def test_a_shape_that_is_forced_is_the_one_that_is_read() -> None:
    record = {**CHAT, "prompt": "a", "completion": "b"}
    assert formed(record, "answers")[0] == "messages"
    found = formed(record, "answers", name="prompt_completion")
    assert found == ("prompt_completion", {"prompt": "a", "completion": "b"})
    assert "has no `prompt`" in formed(CHAT, "answers", name="prompt_completion")[1]


def test_fields_of_any_name_are_mapped() -> None:
    record = {"frage": "2 + 2 =", "antwort": " 4", "completion": 7}
    fields = {"prompt": "frage", "completion": "antwort"}
    found = formed(record, "answers", fields=fields)
    assert found == ("prompt_completion", {"prompt": "2 + 2 =", "completion": " 4"})
    said = formed({"frage": "a"}, "answers", fields=fields)[1]
    assert said == "has no field `antwort` (data.fields.completion), only `frage`"


def test_the_schema_names_every_shape_and_every_task_that_reads_them() -> None:
    assert set(get_args(Format)) == set(BY_NAME)
    assert {"sft", "seq2seq", "dpo", "orpo", "kto", "reward", "grpo"} <= KINDS.keys() & set(
        get_args(Task)
    )
