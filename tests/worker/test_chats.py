"""What of a chat is learnt, by any template, at any length; data of several shapes together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from dslm.errors import RecipeError
from dslm.worker.data.chat_tokens import Chat, chats_to_tokens
from dslm.worker.data.tokenizer import CHATML, template_of
from tests.recipe.test_formats import BAD, GOOD
from tests.worker.preparing import CHAT, prepared, recipe_of, write_lines

pytestmark = pytest.mark.usefixtures("cache")

MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}\n{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# the last answer has an empty thought before it, as Qwen3's template writes it
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}<think>"
    "</think>{% endif %}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ONLY_FIRST = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.index == 2")
COUNTS_MESSAGES = "{{ messages | length }}" + CHAT
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "alpha"},
    {"role": "assistant", "content": "beta gamma"},
    {"role": "user", "content": "delta"},
    {"role": "assistant", "content": "epsilon zeta eta"},
]


def _learnt(
    tokenizer: PreTrainedTokenizerFast,
    chat: Chat,
    length: int | None = None,
    notes: Counter[str] | None = None,
) -> str:
    """The text of a chat, what is learnt between brackets; or what is wrong with it."""
    found = chats_to_tokens(tokenizer, [chat], length, notes)[0]
    if isinstance(found, str):
        return found
    text, was = "", 0
    for token, now in zip(*found, strict=True):
        text += ("[" if now else "]") * (now != was) + tokenizer.decode([token])
        was = now
    return text + "]" * was


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            CHAT,
            "<user>alpha\n<assistant>[beta gamma\n]<user>delta\n<assistant>[epsilon zeta eta\n]",
        ),
        (
            MARKED,
            "<user>alpha\n<assistant>[beta gamma\n]<user>delta\n<assistant>[epsilon zeta eta\n]",
        ),
        (
            THINKING,
            "<user>alpha\n<assistant>[beta gamma\n]<user>delta\n"
            "<assistant>[<think></think>epsilon zeta eta\n]",
        ),
        (
            CHATML,
            "<|im_start|>user\nalpha<|im_end|>\n<|im_start|>assistant\n"
            "[beta gamma<|im_end|><|endoftext|>\n]<|im_start|>user\ndelta<|im_end|>\n"
            "<|im_start|>assistant\n[epsilon zeta eta<|im_end|><|endoftext|>\n]",
        ),
    ],
    ids=["plain", "marked", "thinking", "chatml"],
)
def test_every_answer_is_learnt_and_nothing_else(
    template: str, expected: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = template
    assert _learnt(tokenizer, Chat(messages=TURNS)) == expected


@pytest.mark.parametrize("template", [CHAT, MARKED, THINKING])
def test_only_the_last_answer_is_learnt_where_that_is_asked_for(
    template: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = template
    text = _learnt(tokenizer, Chat(messages=TURNS, answers="last"))
    assert text.count("[") == 1
    assert text.endswith("epsilon zeta eta\n]")


def test_an_answer_of_weight_zero_is_not_learnt(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHAT
    chat = Chat(messages=[TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]])
    assert _learnt(tokenizer, chat).count("[") == 1


@pytest.mark.parametrize("template", [CHAT, MARKED, THINKING])
def test_a_chat_that_is_too_long_keeps_whole_turns_as_the_template_writes_them(
    template: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = template
    full = chats_to_tokens(tokenizer, [Chat(messages=TURNS)])[0]
    short = _learnt(tokenizer, Chat(messages=TURNS[:2]))
    notes: Counter[str] = Counter()
    assert _learnt(tokenizer, Chat(messages=TURNS), len(full[0]) - 1, notes) == short
    assert notes["cut"] == 1
    one = chats_to_tokens(tokenizer, [Chat(messages=TURNS[:2])])[0]
    assert isinstance(one, tuple)
    cut = _learnt(tokenizer, Chat(messages=TURNS), len(one[0]) - 1)
    assert short.startswith(cut[:-1])  # a first answer that is too long by itself is cut
    assert "fills 3 tokens" in _learnt(tokenizer, Chat(messages=TURNS), 3)


def test_a_template_that_loses_a_mark_is_noticed(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = ONLY_FIRST
    assert "marks 1 of its 2 answers" in _learnt(tokenizer, Chat(messages=TURNS))


def test_a_template_that_changes_what_stands_before_an_answer_is_noticed(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = COUNTS_MESSAGES
    assert "renders earlier messages differently" in _learnt(tokenizer, Chat(messages=TURNS))


def test_tools_and_calls_are_written_or_their_loss_is_noticed(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    messages = [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    tool = {"type": "function", "function": {"name": "add"}}
    tokenizer.chat_template = CHATML
    text = _learnt(tokenizer, Chat(messages=messages, tools=[tool]))
    assert '[<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>' in text
    assert '<tools>\n{"type": "function", "function": {"name": "add"}}' in text
    tokenizer.chat_template = CHAT
    assert "doesn't write its tool `add`" in _learnt(tokenizer, Chat(messages=messages))


def test_chats_without_a_template_end_the_preparation_with_the_ways_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    file = write_lines(tmp_path / "chats.jsonl", [{"messages": TURNS}])
    with pytest.raises(RecipeError, match="has no chat template") as failure:
        prepared(recipe_of("sft", str(file)), tokenizer)
    assert "chatml" in failure.value.hint


def test_a_template_is_a_file_a_name_or_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(CHAT)
    assert template_of(str(tmp_path / "own.jinja")) == CHAT
    assert template_of("chatml") == CHATML
    with pytest.raises(RecipeError, match="no template file, and no preset"):
        template_of("nothing-such")


@pytest.mark.parametrize("name", BAD)
def test_a_broken_record_is_refused_with_its_line(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = CHAT
    task, record, said = BAD[name]
    if task not in ("sft", "dpo", "kto", "reward"):
        pytest.skip(f"{task} encodes the same values")
    good = next(g[1] for g in GOOD.values() if g[0] == task)
    file = write_lines(tmp_path / "data.jsonl", [good, good, record])
    statistics = prepared(recipe_of(task, str(file)), tokenizer).statistics
    assert statistics["bad_records"] == 1
    assert statistics["examples"][0].startswith(f"{file}:3: ")
    assert said in statistics["examples"][0]


def test_sources_of_several_shapes_are_mixed_by_weight(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = CHAT
    chats = write_lines(tmp_path / "chats.jsonl", [{"messages": TURNS}] * 3)
    own = write_lines(tmp_path / "own.jsonl", [{"frage": "alpha", "antwort": "beta"}] * 4)
    fields = {"prompt": "frage", "completion": "antwort"}
    train = [
        {"path": str(chats)},
        {"path": str(own), "weight": 2, "format": "prompt_completion", "fields": fields},
    ]
    found = prepared(recipe_of("sft", train, data__packing="false"), tokenizer)
    assert found.statistics["formats"] == {"messages": 3, "prompt_completion": 4}
    assert len(found.train) == 3 + 2 * 4
