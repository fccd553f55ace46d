"""A config goes along with the devices that it was made for, and is no worse a config for that."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from dslm.cluster.detect import local_cluster
from dslm.decide.made_for import MARK, MadeFor, made_for, made_for_others, mark_of, marked
from dslm.zero.lint import lint
from tests.conftest import DSLM

H100 = MadeFor(device="h100-80gb", ranks=8)
PLAIN: dict[str, object] = {
    "train_batch_size": 8, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
    "zero_optimization": {"stage": 2},
}  # fmt: skip


def test_the_mark_is_read_back_and_no_finding_of_the_linter() -> None:
    values = marked(PLAIN, H100)
    assert mark_of(values) == H100
    assert lint(values) == lint(PLAIN)


def test_deepspeed_reads_a_marked_config_as_it_reads_the_plain_one() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig({**marked(PLAIN, H100), "train_batch_size": 1})
    assert read.zero_optimization_stage == 2


@pytest.mark.parametrize(
    "mark", [None, "h100", [], {}, {"device": 3, "ranks": 8}, {"device": "x", "ranks": "8"}]
)
def test_another_mark_is_none(mark: object) -> None:
    assert mark_of({**PLAIN, MARK: mark}) is None


@pytest.mark.parametrize(
    "option", ["--deepspeed FILE", "--deepspeed=FILE", "--deepspeed_config FILE"]
)
def test_a_script_that_gets_a_config_for_other_devices_is_told(option: str, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    words = ["--lr", "1", *option.replace("FILE", str(file)).split()]
    cluster = local_cluster(ranks=1)
    assert made_for_others(words, cluster) == ""  # there is no such file: the script says so
    file.write_text(json.dumps(marked(PLAIN, H100)))
    said = made_for_others(words, cluster)
    assert said.startswith(f"{file} was made for 8 × h100-80gb, and these are 1 × ")
    for quiet in (marked(PLAIN, made_for(cluster)), PLAIN):
        file.write_text(json.dumps(quiet))
        assert made_for_others(words, cluster) == ""
    file.write_text("{")
    assert made_for_others(words, cluster) == ""


def test_what_config_prints_is_marked_and_its_check_reads_the_mark(tmp_path: Path) -> None:
    argv = [str(DSLM), "config", "quickstart", "--num-gpus", "8", "--device", "h100-80gb"]
    made = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert mark_of(json.loads(made.stdout)) == H100
    (tmp_path / "ds.json").write_text(made.stdout)
    check = [str(DSLM), "config", "--check", "ds.json"]
    checked = subprocess.run(check, capture_output=True, text=True, cwd=tmp_path)
    assert checked.returncode == 0
    assert "made for 8 × h100-80gb" in checked.stderr
