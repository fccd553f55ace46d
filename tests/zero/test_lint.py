"""The linter finds what DeepSpeed ignores or trips over, and says the path and the fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dslm.errors import ConfigError
from dslm.presets import shipped_folder
from dslm.zero.lint import known, lint, load_config
from tests.conftest import Dslm

OK: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1}
Z: dict[str, Any] = {"stage": 3}
TABLE: list[tuple[str, dict[str, Any], str, str]] = [
    ("typo at the top", {**OK, "zero_optimisation": {}}, "zero_optimisation", "zero_optimization"),
    ("typo below", {**OK, "zero_optimization": {"stag": 2}}, "zero_optimization.stag", "stage"),
    (
        "typo two below",
        {**OK, "zero_optimization": {**Z, "offload_param": {"device": "cpu", "pin_memry": True}}},
        "zero_optimization.offload_param.pin_memry",
        "pin_memory",
    ),
    ("key in the wrong section", {**OK, "stage": 2}, "stage", "zero_optimization.stage"),
    ("removed", {**OK, "elasticity": {"enabled": True}}, "elasticity", "removed"),
    (
        "two spellings",
        {
            **OK,
            "zero_optimization": {
                **Z, "prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 2,
            },
        },
        "zero_optimization.prefetch_bucket_size",
        "two spellings",
    ),
    (
        "batch triangle",
        {
            "train_batch_size": 10, "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 1,
        },
        "train_batch_size",
        "8 or 12",
    ),
    ("no batch", {"bf16": {"enabled": True}}, "train_batch_size", "micro batch"),
    ("negative batch", {"train_batch_size": -1}, "train_batch_size", "positive"),
    (
        "both precisions",
        {**OK, "fp16": {"enabled": True}, "bf16": {"enabled": True}},
        "fp16.enabled",
        "bf16",
    ),
    ("stage", {**OK, "zero_optimization": {"stage": 4}}, "zero_optimization.stage", "0, 1, 2 or 3"),
    (
        "offload at stage 0",
        {**OK, "zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
        "zero_optimization.offload_optimizer",
        "stage",
    ),
    (
        "parameters offloaded at stage 2",
        {**OK, "zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        "zero_optimization.offload_param",
        "stage 3",
    ),
    (
        "nvme without a path",
        {**OK, "zero_optimization": {**Z, "offload_param": {"device": "nvme"}}},
        "zero_optimization.offload_param.nvme_path",
        "nvme",
    ),
    (
        "auto that nothing fills",
        {**OK, "steps_per_print": "auto"},
        "steps_per_print",
        "nothing fills",
    ),
    (
        "optimizer parameter",
        {**OK, "optimizer": {"type": "AdamW", "params": {"learning_rate": 1e-3}}},
        "optimizer.params.learning_rate",
        "no parameter",
    ),
    (
        "clipping in the optimizer",
        {**OK, "optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1.0}}},
        "optimizer.params.max_grad_norm",
        "gradient_clipping",
    ),
    (
        "scheduler that there is not",
        {**OK, "scheduler": {"type": "WarmupDecay", "params": {}}},
        "scheduler.type",
        "WarmupDecayLR",
    ),
    (
        "warm-up longer than the run",
        {
            **OK,
            "scheduler": {
                "type": "WarmupDecayLR", "params": {"total_num_steps": 10, "warmup_num_steps": 100},
            },
        },
        "scheduler.params.warmup_num_steps",
        "longer",
    ),
    (
        "scheduler without an end",
        {**OK, "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 10}}},
        "scheduler.params.total_num_steps",
        "needs it",
    ),
    (
        "tensor parallel at stage 3",
        {**OK, "tensor_parallel": {"autotp_size": 2}, "zero_optimization": Z},
        "tensor_parallel.autotp_size",
        "stage",
    ),
    ("a section that is none", {**OK, "bf16": True}, "bf16", "object"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "key", "said"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_a_mistake_is_found_with_its_path_and_fix(
    config: dict[str, Any], key: str, said: str
) -> None:
    errors = [finding for finding in lint(config) if finding.severity == "error"]
    found = [finding for finding in errors if finding.where.key == key]
    assert found, errors
    assert said in f"{found[0].message} {found[0].hint}"


def test_all_nine_pairs_of_spellings_are_known() -> None:
    assert len(known()["keys"]["zero_optimization"]["spellings"]) == 9


@pytest.mark.parametrize("file", sorted(shipped_folder("ds_configs").glob("*.json")), ids=str)
def test_the_shipped_configs_are_clean(file: Path) -> None:
    assert lint(load_config(file)) == []


def test_a_config_for_the_trainer_is_no_error() -> None:
    config = {
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
    }  # fmt: skip
    assert {finding.severity for finding in lint(config)} == {"warning"}


def test_a_key_that_stands_there_twice_is_found(tmp_path: Path) -> None:
    file = tmp_path / "twice.json"
    file.write_text('{"bf16": {}, "bf16": {}}')
    with pytest.raises(ConfigError, match="twice"):
        load_config(file)


def test_the_command_exits_2_and_names_the_path(dslm: Dslm, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({**OK, "zero_optimisation": {"stage": 2}}))
    done = dslm("config", "--check", "ds.json")
    assert done.returncode == 2
    assert "zero_optimisation" in done.stderr
    assert "did you mean `zero_optimization`" in done.stderr
    document = json.loads(dslm("config", "--check", "ds.json", "--json").stdout)
    assert document[0]["path"] == "zero_optimisation"
