"""A dry run shows everything that would happen, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Dslm
from tests.processes import slots_of


def test_it_shows_recipe_config_and_command(dslm: Dslm, tmp_path: Path) -> None:
    done = dslm("train", "quickstart", "--dry-run", "--json", "--master-port", "29511")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["recipe"]["batch"]["micro_size"] == 8
    assert document["ds_config"]["zero_optimization"]["stage"] == 2
    assert document["command"][-7:-4] == ["--no_local_rank", "--module", "dslm.worker.main"]
    assert "29511" in document["command"]
    assert document["attempt"]["master_port"] == 29511
    assert not list(tmp_path.iterdir())


def test_people_get_the_same_as_text(dslm: Dslm) -> None:
    done = dslm("train", "quickstart", "--dry-run")
    for words in ("# recipe.yaml", "# ds_config.json", "# command", "-m deepspeed.launcher.launch"):
        assert words in done.stdout


# what a recipe names on the Hub: how it is said when the Hub can't be reached
_OUT_OF_REACH = "is not in the cache, and the Hub can't be reached"
_UNKNOWN = "whether it fits is unknown: the model couldn't be traced: "
_ON_THE_HUB = {
    "model": (
        ["model.init=pretrained", "model.name=org/some", "model.tokenizer=null"],
        [
            f"{_UNKNOWN}the config of `org/some` {_OUT_OF_REACH}",
            f"`org/some` (model, tokenizer) {_OUT_OF_REACH}",
        ],
    ),
    "tokenizer": (["model.tokenizer=org/words"], [f"`org/words` (tokenizer) {_OUT_OF_REACH}"]),
    "data": (["data.train=org/texts"], [f"`org/texts` (data set) {_OUT_OF_REACH}"]),
    "downloaded": (
        ["data.train=org/keptTables", "model.tokenizer=org/kept"],
        ["the Hub can't be reached: only earlier downloads can be used"],
    ),
}


@pytest.mark.parametrize("case", _ON_THE_HUB)
def test_it_says_what_of_the_hub_can_not_be_had_here(case: str, dslm: Dslm, tmp_path: Path) -> None:
    settings, remarks = _ON_THE_HUB[case]
    kept = tmp_path / "home/hub/models--org--kept"
    for folder in ("snapshots/abc", "refs"):
        (kept / folder).mkdir(parents=True)
    (kept / "refs/main").write_text("abc")
    (kept / "snapshots/abc/tokenizer.json").write_text("{}")
    (tmp_path / "home/datasets/org___kept_tables/default/0.0.0/abc").mkdir(parents=True)
    words = [word for setting in settings for word in ("--set", setting)]
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    done = dslm("train", "quickstart", *words, "--dry-run", "--json", **away)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["remarks"] == remarks
    assert document["command"]
    assert document["ds_config"]


def test_cuda_devices_are_named_one_by_one() -> None:
    from dataclasses import replace

    from dslm.cluster.detect import Machine, local_cluster
    from dslm.cluster.devices import device_named
    from dslm.launch.sites import local
    from dslm.launch.spec import LaunchSpec

    machine = Machine(
        accelerators=(device_named("h100"),) * 8, visible=(4, 6), memory_bytes=2**39, cores=64
    )
    spec = LaunchSpec(
        module="m",
        cluster=local_cluster(machine=machine),
        run=Path("/run"),
        attempt=1,
        master_address="127.0.0.1",
        master_port=1,
    )
    request = local.request(spec)
    (devices,) = slots_of(request.argv).values()
    assert devices == [4, 6]
    assert "CUDA_VISIBLE_DEVICES" in request.removed
    assert "DS_ACCELERATOR" not in request.environment
    on_cpu = replace(machine, accelerators=(), visible=())
    request = local.request(replace(spec, cluster=local_cluster(machine=on_cpu, ranks=2)))
    assert request.environment["DS_ACCELERATOR"] == "cpu"
    assert slots_of(request.argv) == {"localhost": [0, 1]}
