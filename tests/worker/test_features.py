"""Features of DeepSpeed that run on a CPU train, with the losses of a training without them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dslm.run.directory import RunDirectory
from tests.worker.conftest import Train, losses

pytestmark = pytest.mark.slow

FP32 = {"precision": "fp32", "duration__steps": 10, "data__eval": 0}
HOST = {"parallel__offload": "optimizer"}
MUON = {"optimizer__name": "muon", "optimizer__grad_clip": 0}
Settings = dict[str, Any]
# name: what is set, what else both have, and how far the losses may differ
SAME: dict[str, tuple[Settings, Settings, float]] = {
    "loss in chunks": ({"model__chunked_loss": "true"}, {"parallel__zero_stage": 2}, 1e-5),
    "Twin-Flow": ({"parallel__offload_ratio": 0.5}, {"parallel__zero_stage": 3, **HOST}, 1e-5),
    "no overlap": ({"parallel__overlap": "false"}, {"parallel__zero_stage": 2}, 0.0),
    # products in bf16 of numbers in fp32
    "autocast": ({"autocast": "true", "precision": "bf16"}, {"parallel__zero_stage": 2}, 0.02),
}


@pytest.mark.parametrize("name", SAME)
def test_a_feature_changes_no_loss(trained: Train, name: str) -> None:
    feature, both, off = SAME[name]
    plain = trained(ranks=2, **FP32, **both)
    run = trained(ranks=2, **{**FP32, **both, **feature})
    assert len(losses(run)) == 10
    assert losses(run) == pytest.approx(losses(plain), abs=off)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Muon", {**MUON, "parallel__zero_stage": 2}),
        ("Muon, stage 3", {**MUON, "parallel__zero_stage": 3}),
        ("ZenFlow", {"parallel__zenflow": "true", "parallel__zero_stage": 2, **HOST}),
    ],
)
def test_a_feature_that_learns_otherwise_learns(
    trained: Train, name: str, settings: Settings
) -> None:
    batch = {"batch__global_size": 4} if name == "ZenFlow" else {}
    found = losses(trained(ranks=2, **FP32, **settings, **batch))
    assert len(found) == 10
    assert found[-1] < found[0] - 0.05


def test_what_twin_flow_moves_is_a_number_of_groups(trained: Train) -> None:
    run = trained(ranks=2, **FP32, parallel__zero_stage=3, **HOST, parallel__offload_ratio=0.5)
    config = json.loads(RunDirectory(run).ds_config.read_text())["zero_optimization"]
    assert config["offload_optimizer"]["ratio"] == 0.5
    parameters = json.loads(RunDirectory(run).plan.read_text())["model"]["trained"]
    assert config["sub_group_size"] <= parameters / 2 / 10
