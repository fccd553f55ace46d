"""Types that no code of dslm names are planned as they are: a sample of the coverage benchmark."""

from __future__ import annotations

import pytest

from benchmarks.planner_coverage import architecture_of, cover, types

# layers used again; eager attention only; a frozen parameter beside experts; stages of other
# widths; an encoder and a decoder; a classifier that looks for the last token; attention by blocks;
# what asks token ids for their values, and layers in turns; a recurrence over chunks; sizes that
# differ between layers
SAMPLE = [
    ("mlm", "albert"), ("pretrain", "bloom"), ("pretrain", "afmoe"), ("vision", "swin"),
    ("seq2seq", "bart"), ("classify", "llama"), ("seq2seq", "longt5"),
    ("classify", "bart"), ("mlm", "flaubert"), ("classify", "qwen3_5_text"),
    ("pretrain", "gemma4_text"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "model_type"), SAMPLE)
def test_a_type_is_planned_exactly(task: str, model_type: str) -> None:
    row = cover(task, model_type)
    assert row.builds, row.why
    assert row.exact, row


def test_the_tables_are_transformers_own() -> None:
    assert len(types("pretrain")) > 100
    assert len(types("classify")) > 60
    assert architecture_of("llama")["num_hidden_layers"] < 32
