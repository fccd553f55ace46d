"""The linter finds what DeepSpeed ignores or trips over, and says the path and the fix."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dslm.errors import ConfigError
from dslm.presets import shipped_folder
from dslm.zero.lint import known, lint, load_config
from dslm.zero.read import read_config
from tests.conftest import Dslm
from tests.support.golden import SameAs, whole

OK: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1}
STAGE_3: dict[str, Any] = {"stage": 3}
Z, S = "zero_optimization", "scheduler.params"


def zero(stage: Any = 3, **values: Any) -> dict[str, Any]:
    return {**OK, "zero_optimization": {"stage": stage, **values}}


def adam(name: str = "AdamW", **params: Any) -> dict[str, Any]:
    return {**OK, "optimizer": {"type": name, "params": params}}


def warmup(**params: Any) -> dict[str, Any]:
    return {**OK, "scheduler": {"type": "WarmupLR", "params": params}}


TABLE: list[tuple[str, dict[str, Any], str, str]] = [
    ("typo at the top", {**OK, "zero_optimisation": {}}, "zero_optimisation", "zero_optimization"),
    ("typo below", {**OK, "zero_optimization": {"stag": 2}}, "zero_optimization.stag", "stage"),
    (
        "typo two below",
        zero(offload_param={"device": "cpu", "pin_memry": True}),
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
                **STAGE_3, "prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 2,
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
        {**OK, "zero_optimization": {**STAGE_3, "offload_param": {"device": "nvme"}}},
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
    ("a section that is none", {**OK, "bf16": True}, "bf16", "object"),
    ("a section that is null", {**OK, "fp16": None}, "fp16", "null"),
    ("a section that is a list", {**OK, "optimizer": []}, "optimizer", "object"),
    ("text for a number", {**OK, "gradient_clipping": "1.0"}, "gradient_clipping", "a number"),
    ("a word for a switch", {**OK, "bf16": {"enabled": "maybe"}}, "bf16.enabled", "true or false"),
    ("a switch for a number", zero(reduce_bucket_size=True), f"{Z}.reduce_bucket_size", "true"),
    ("true for a stage", zero(stage=True), f"{Z}.stage", "0, 1, 2 or 3"),
    ("an empty bucket", zero(reduce_bucket_size=0), f"{Z}.reduce_bucket_size", "positive"),
    ("a negative bucket", zero(allgather_bucket_size=-1), f"{Z}.allgather_bucket_size", "0 or "),
    (
        "a ratio above one",
        zero(offload_optimizer={"device": "cpu", "ratio": 2}),
        f"{Z}.offload_optimizer.ratio",
        "from 0 to 1",
    ),
    (
        "a negative count",
        zero(offload_param={"device": "cpu", "buffer_count": -1}),
        f"{Z}.offload_param.buffer_count",
        "0 or more",
    ),
    (
        "a device that there is not",
        zero(offload_param={"device": "gpu"}),
        f"{Z}.offload_param.device",
        "none, cpu or nvme",
    ),
    ("half an element", zero(sub_group_size=0.5), f"{Z}.sub_group_size", "whole number"),
    ("no print at all", {**OK, "steps_per_print": 0}, "steps_per_print", "positive"),
    ("no number", {**OK, "gradient_clipping": math.nan}, "gradient_clipping", "finite number"),
    ("no end", zero(sub_group_size=math.inf), f"{Z}.sub_group_size", "not a finite number"),
    (
        "no number in an open section",
        {**OK, "data_efficiency": {"seed": [math.inf]}},
        "data_efficiency.seed",
        "not a finite number",
    ),
    (
        "reduced by max",
        {**OK, "gradient_allreduce_op": "max"},
        "gradient_allreduce_op",
        "mean or sum",
    ),
    (
        "ZenFlow with a sum",
        zero(2, offload_optimizer={"device": "cpu"}, zenflow={}) | {"gradient_allreduce_op": "sum"},
        "gradient_allreduce_op",
        "ZenFlow",
    ),
    ("ZenFlow on the device", zero(2, zenflow={}), f"{Z}.zenflow", "on the CPU"),
    (
        "ZenFlow's interval as a word",
        zero(2, offload_optimizer={"device": "cpu"}, zenflow={"select_interval": "often"}),
        f"{Z}.zenflow.select_interval",
        '"auto"',
    ),
    ("stage 3's weights", zero(2, zero_quantized_weights=True), f"{Z}.zero_quantized_weights", "3"),
    (
        "stage 3's gradients",
        zero(1, zero_quantized_gradients=True),
        f"{Z}.zero_quantized_gradients",
        "needs stage 3",
    ),
    (
        "a part of the optimizer at stage 2",
        zero(2, offload_optimizer={"device": "cpu", "ratio": 0.5}),
        f"{Z}.offload_optimizer.ratio",
        "needs stage 3",
    ),
    (
        "master weights without ZeRO",
        {**OK, "bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
        "bf16.bf16_master_weights_and_grads",
        "needs stage",
    ),
    (
        "scaled before it is scattered",
        {**zero(2), "prescale_gradients": True},
        "prescale_gradients",
        "reduce_scatter",
    ),
    (
        "accumulation that does not divide",
        {"train_batch_size": 10, "gradient_accumulation_steps": 4},
        "train_batch_size",
        "8 or 12",
    ),
    ("misplaced offload", {**OK, "offload_optimizer": {}}, "offload_optimizer", f"{Z}.offload_opt"),
    ("misplaced clipping", {**OK, "max_grad_norm": 1.0}, "max_grad_norm", "gradient_clipping"),
    ("misplaced rate", {**OK, "learning_rate": 1e-4}, "learning_rate", "optimizer.params.lr"),
    (
        "a remark where none may be",
        {**OK, "bf16": {"enabled": True, "_comment": "x"}},
        "bf16._comment",
        "top level",
    ),
    (
        "removed optimizer",
        {**OK, "optimizer": {"type": "OneBitAdam", "params": {"lr": 1e-4}}},
        "optimizer.type",
        "removed",
    ),
    (
        "unknown optimizer",
        {**OK, "optimizer": {"type": "AdamX", "params": {}}},
        "optimizer.type",
        "no optimizer",
    ),
    (
        "torch's optimizer in the wrong case",
        {**OK, "optimizer": {"type": "sgd", "params": {"lr": 1e-4}}},
        "optimizer.type",
        "did you mean `SGD`",
    ),
    (
        "torch's optimizer with ZeRO",
        {**zero(2), "optimizer": {"type": "SGD", "params": {"lr": 1e-4}}},
        "optimizer.type",
        "zero_allow_untested_optimizer",
    ),
    ("one beta", adam(betas=[0.9]), "optimizer.params.betas", "2 numbers"),
    ("a beta above one", adam(betas=[0.9, 1.5]), "optimizer.params.betas", "from 0 below 1"),
    ("a rate as text", adam(lr="1e-4"), "optimizer.params.lr", "a number"),
    ("a negative rate", adam(lr=-1), "optimizer.params.lr", "0 or more"),
    ("a warm-up of none", warmup(warmup_num_steps=0), f"{S}.warmup_num_steps", "positive"),
    ("a warm-up in floats", warmup(warmup_num_steps=1e3), f"{S}.warmup_num_steps", "whole"),
    ("an unknown curve", warmup(warmup_type="cosine"), f"{S}.warmup_type", "log or linear"),
    (
        "torch's scheduler without its parameter",
        {**OK, "scheduler": {"type": "CosineAnnealingLR", "params": {}}},
        f"{S}.T_max",
        "needs it",
    ),
    (
        "torch's scheduler with ZeRO",
        {**zero(1), "scheduler": {"type": "CosineAnnealingLR", "params": {"T_max": 10}}},
        "scheduler.type",
        "refuses the optimizer",
    ),
    (
        "an expert's typo",
        {**OK, "expert_parallel": {"enabled": True, "autoep_sise": 2}},
        "expert_parallel.autoep_sise",
        "autoep_size",
    ),
    ("another program's file", {"model": "x", "data": {}}, "", "none of its keys"),
]  # fmt: skip
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("a remark", {**OK, "_comment": "for two hosts", "//": "x", "comment": "y"}),
    (
        "torch's scheduler in fp32",
        {**OK, "scheduler": {"type": "CosineAnnealingLR", "params": {"T_max": 10, "eta_min": 0}}},
    ),
    (
        "ZenFlow's auto",
        zero(
            2,
            offload_optimizer={"device": "cpu"},
            zenflow={
                "select_strategy": "auto", "select_interval": "auto", "update_interval": "auto",
            },
        ),
    ),
    ("elements in powers of ten", zero(reduce_bucket_size=5e8, sub_group_size=1e9)),
    ("a switch as a number", {**OK, "bf16": {"enabled": 1}}),
    ("accelerate's silence", {**OK, "steps_per_print": math.inf}),
    ("nothing to offload", zero(2, offload_optimizer=None, offload_param={"device": "none"})),
    ("DeepSpeed's names in any case", adam("ADAMW", lr=0)),
    ("torch's optimizer, allowed", {
        **zero(2), "zero_allow_untested_optimizer": True,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
    }),
    ("torch's optimizer without ZeRO", {
        **OK, "optimizer": {"type": "RMSprop", "params": {"lr": 0.1, "alpha": 0.9}},
    }),
    ("words in any case", {**OK, "communication_data_type": "FP32"}),
    ("operations in any case", {**OK, "gradient_allreduce_op": "Sum"}),
    ("experts", {**OK, "expert_parallel": {"enabled": True, "autoep_size": 2, "top_k": "auto"}}),
    ("null where DeepSpeed takes it", {**OK, "bf16": None, "aio": None, "train_batch_size": None}),
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


LONG = "k" * 70
DOUBTFUL: list[dict[str, Any]] = [
    {**OK, "cuda_visible_devices": "0"}, {**OK, LONG: 1}, {**OK, "k" * 60: 1},
    {**OK, "bf16xx": {"enabled": True}, "bf16_on": True, "offload_param": {}},
    {**OK, "comment": "mine", "_note": 1, "$schema": "x"},
    zero(3, comment="mine", **{LONG: 1}), zero(3, **{"#": 1, "gradient_clipping": 1.0}),
    {**OK, **{f"unheard_of_{n}": 1 for n in range(48)}, "stage": 2, "zero_optimisation": 1},
    {**OK, **{f"unheard_of_{n}": 1 for n in range(50)}, "stage": 2},
    zero(3, cpu_offload=True, offload_param=None), {**OK, "fp16": None}, {**OK, "fp16": []},
    {"name": "mine", "version": 2, "scripts": {}, "more": 1}, {},
    zero("auto", offload_param={"device": "auto", "pin_memory": "auto"}, sub_group_size="auto"),
    {**OK, "optimizer": {"type": "Mine", "params": {"lr": "auto", "mine": "auto", "x": math.nan}}},
    {**OK, "gradient_clipping": math.nan, "steps_per_print": math.inf},
    {**OK, "zero_allow_untested_optimizer": "auto", "_remark": "auto", "zero_optimization": True},
    {"_remark": "auto", **OK, "steps_per_print": "auto"},
    {
        **OK, "expert_parallel": {"enabled": True, "autoep_size": 2, "score_func": "auto"},
        "steps_per_print": "auto",
    },
]  # fmt: skip


def test_all_that_is_said_of_mistakes(same_as: SameAs) -> None:
    rows = [(title, config) for title, config, *_ in TABLE]
    rows += [(", ".join(config)[:60], config) for config in DOUBTFUL]
    text = "".join(f"{title}\n{whole(lint(config))}" for title, config in rows)
    lines = [line for line in text.splitlines() if "`unheard_of_" not in line]  # fifty alike
    same_as("findings/lint.txt", "\n".join(lines) + "\n")


def test_a_removed_key_is_found_in_its_section_and_what_follows_it_too() -> None:
    found = lint({**zero(3, mics_shard_size=4, stag=3), "elasticity": {}, "zero_optimisation": {}})
    assert [finding.where.key for finding in found if finding.severity == "error"] == [
        "elasticity", f"{Z}.mics_shard_size", f"{Z}.stag", "zero_optimisation",
    ]  # fmt: skip


def test_of_very_many_unknown_keys_only_the_first_get_a_hint() -> None:
    many = {f"unheard_of_{number}": 1 for number in range(49)}
    found = {f.where.key: f.hint for f in lint(zero(3, **many, stag=3, offload_parm={}))}
    assert "stage" in found[f"{Z}.stag"]
    assert found[f"{Z}.offload_parm"] == ""


def test_findings_are_in_the_order_of_the_file_and_name_it() -> None:
    config = {"bf16": {"enabled": True}, "zero_optimisation": {}, "optimizer": []}
    lines = {"bf16": 1, "bf16.enabled": 1, "zero_optimisation": 3, "optimizer": 2}
    found = [f for f in lint(config, Path("ds.json"), lines) if f.severity == "error"]
    # what is missing stands on no line, and comes first
    assert [(f.where.key, f.where.line) for f in found] == [
        ("train_batch_size", None), ("optimizer", 2), ("zero_optimisation", 3),
    ]  # fmt: skip
    assert {f.where.file for f in found} == {Path("ds.json")}
    one_line = lint(config, Path("ds.json"), dict.fromkeys(lines, 1))
    assert one_line[0].where.key == "train_batch_size"


@pytest.mark.parametrize("config", [row[1] for row in GOOD], ids=[row[0] for row in GOOD])
def test_a_good_config_is_clean(config: dict[str, Any]) -> None:
    assert lint(config) == []


def test_a_key_that_resembles_none_is_only_doubtful() -> None:
    (found,) = lint({**OK, "cuda_visible_devices": "0"})
    assert (found.severity, found.where.key) == ("warning", "cuda_visible_devices")


def test_parameters_offloaded_beside_the_optimizer_have_no_effect_at_stage_2() -> None:
    (found,) = lint(zero(2, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"}))
    assert (found.severity, found.where.key) == ("warning", f"{Z}.offload_param")


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
    assert document[0]["line"] == 1


def test_findings_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(
        '{"train_micro_batch_size_per_gpu": 1,\n "zero_optimization": {\n  "stage": 2,\n'
        '  "reduce_bucket_size": 0},\n "optimizer": {\n  "params": {}}}\n'
    )
    config = read_config(file)
    found = lint(config.values, file=file, lines=config.lines)
    assert [(finding.where.key, finding.where.line) for finding in found] == [
        (f"{Z}.reduce_bucket_size", 4),
        ("optimizer.type", 5),  # missing: the line of its section
    ]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('{"a": 1,\n "a": 2}', 2, "twice"),
        ('{\n\n"a": tru}', 3, "a value is expected"),
        ('{"a": 1,\n}', 2, "comma"),
        ('{"a": 1 // one\n}', 1, "comment"),
        ("{'a': 1}", 1, "single quotes"),
        ('{"a": True}', 1, "Python word"),
        ('{"a": ' + "[" * 3000, 1, "deeper than 50"),
        ('{"a":' * 100_000, 1, "deeper than 50"),
        ('{"a": ' + "9" * 5000 + "}", 1, "digits"),
        ('{"a": "\n"}', 1, "wrong character"),
        ("[]", None, "not a JSON object"),
        ("", 1, "ends too early"),
        ('{"a": 1} x', 1, "after its end"),
        ('{"a": "' + "x" * (2 << 20) + '"}', None, "larger than 1 MiB"),
    ],
    ids=range(14),
)
def test_a_file_that_is_no_config_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int | None, said: str
) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)
    with pytest.raises(ConfigError) as failure:
        read_config(file)
    assert said in f"{failure.value.message} {failure.value.hint}"
    assert failure.value.where.line == line


@pytest.mark.parametrize(
    "text",
    [
        '{"gradient_clipping": NaN}',
        '{"gradient_clipping": 1e400}',
        '{"gradient_clipping": -Infinity}',
        '{"gradient_clipping": ' + "1" * 350 + ".5}",
        '{"train_batch_size": ' + "1" * 399 + "}",
        '{"train_batch_size": -1, "train_micro_batch_size_per_gpu": ' + "9" * 399 + "}",
        '{"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": ' + "9" * 399 + "}}}",
        '{"fp16": {"enabled": true, "min_loss_scale": -' + "9" * 399 + "}}",
        '{"tensor_parallel": {"autotp_size": 2, "tp": {"tp_size": ' + "9" * 399 + "}}}",
        '{"zero_optimization": {"zenflow": {"select_strategy": "step", "select_interval": '
        '1, "update_interval": ' + "9" * 399 + "}}}",
    ],
)
def test_a_number_that_is_none_or_huge_never_breaks_the_linter(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(text)
    lint(load_config(file))


def test_thousands_of_wrong_keys_are_cut_to_what_a_person_reads(dslm: Dslm, tmp_path: Path) -> None:
    wrong = {f"zero_optimization{number}" + "x" * 5000 * (number < 3): 1 for number in range(3000)}
    (tmp_path / "ds.json").write_text(json.dumps({**OK, **wrong, "gradient_clipping": -1}))
    done = dslm("config", "--check", "ds.json")
    assert done.returncode == 2
    assert len(done.stderr) < 8000
    assert "more: `--json` gives them all" in done.stderr
