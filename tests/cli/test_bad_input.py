"""Bad input gets one message, exit code 2, no traceback, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Dslm

TRAIN = ["train", "quickstart"]
_TOKEN = "hf_" + "aB3" * 11

# name, arguments, what the message must say
TABLE: list[tuple[str, list[str], list[str]]] = [
    ("unknown preset", ["train", "quickstrat"], ["quickstrat", "quickstart"]),
    ("missing recipe file", ["train", "nowhere/mine.yaml"], ["nowhere/mine.yaml"]),
    ("YAML that does not parse", ["train", "broken.yaml"], ["broken.yaml:2"]),
    ("misspelt section", ["train", "section.yaml"], ["section.yaml:2", "optimiser", "optimizer"]),
    (
        "misspelt key, deep",
        ["train", "deep.yaml"],
        ["deep.yaml:3", "zero_stagee", "parallel.zero_stage"],
    ),
    ("misspelt override", [*TRAIN, "-s", "batch.globl_size=8"], ["globl_size", "global_size"]),
    ("override without a value", [*TRAIN, "-s", "batch.global_size"], ["KEY=VALUE"]),
    ("wrong type", [*TRAIN, "-s", "batch.global_size=many"], ["batch.global_size", "many"]),
    ("zero steps", [*TRAIN, "-s", "duration.steps=0"], ["duration.steps"]),
    ("negative batch", [*TRAIN, "-s", "batch.global_size=-4"], ["batch.global_size"]),
    (
        "global batch that does not divide",
        [*TRAIN, "-s", "batch.global_size=7", "--num-gpus", "2"],
        ["7", "2", "6", "8"],
    ),
    ("missing data", [*TRAIN, "-s", "data.train=nowhere.txt"], ["nowhere.txt"]),
    ("empty data file", [*TRAIN, "-s", "data.train=empty.txt"], ["empty.txt", "empty"]),
    ("empty data folder", [*TRAIN, "-s", "data.train=hollow"], ["hollow"]),
    ("no data at all", ["train", "smollm2-135m", "--force"], ["data.train"]),
    (
        "sequence longer than the model",
        [*TRAIN, "-s", "data.sequence_length=1000000"],
        ["1000000", "positions"],
    ),
    ("fp16 on a CPU", [*TRAIN, "-s", "precision=fp16"], ["fp16", "bf16"]),
    (
        "a model folder that is none",
        [*TRAIN, "-s", "model={init: pretrained, name: ./hollow}"],
        ["hollow", "config.json"],
    ),
    ("a model folder that is missing", [*TRAIN, "-s", "model.name=./gone"], ["gone"]),
    ("output folder with another run", [*TRAIN, "-o", "taken"], ["taken"]),
    ("a dry run into another run", [*TRAIN, "-o", "taken", "--dry-run"], ["taken"]),
    ("a dry run of going on with nothing", [*TRAIN, "--resume", "--dry-run"], ["--resume"]),
    ("output folder that is a file", [*TRAIN, "-o", "empty.txt"], ["empty.txt"]),
    ("output folder that can't be made", [*TRAIN, "-o", "/proc/run"], ["/proc/run"]),
    ("more ranks than slots", [*TRAIN, "--num-gpus", "4096"], ["4096", "slots"]),
    ("include of a slot that is not", [*TRAIN, "--include", "localhost:4096"], ["4096"]),
    ("secret in the recipe", [*TRAIN, "-s", "environment.HF_TOKEN=abc"], ["HF_TOKEN"]),
    (
        "secret of the training arguments",
        [*TRAIN, "-s", "training_args.hub_token=abc"],
        ["--set training_args.hub_token", "your own environment"],
    ),
    (
        "secret of a tracker",
        [*TRAIN, "-s", "deepspeed.comet={api_key: abc}"],
        ["--set deepspeed.comet.api_key", "your own environment"],
    ),
    (
        "secret in a batch script",
        [*TRAIN, "--slurm", "--num-gpus", "1", "-s", f"description={_TOKEN}"],
        ["--set description", "Hugging Face"],
    ),
    (
        "secret in a script's arguments",
        ["launch", "script.py", "--", "--lr", "1", "--token", "abc"],
        ["argument 4", "your own environment"],
    ),
    ("secret in a recipe file", ["recipes", "show", "secret.yaml"], ["secret.yaml:3", "GitHub"]),
    ("adapters on nothing", [*TRAIN, "-s", "lora={}"], ["lora", "scratch", "model.init"]),
    ("batch that is not a multiple", [*TRAIN, "-s", "batch.micro_size=5"], ["batch", "10", "20"]),
    ("optimizer parameter", [*TRAIN, "-s", "optimizer.learning_rate=1"], ["learning_rate", "lr"]),
    (
        "layers shared by ranks",
        [*TRAIN, "-s", "parallel.ranks=3", "-s", "parallel.tensor=2"],
        ["tensor × sequence = 2", "multiple"],
    ),
    (
        "layers and sequences shared",
        [*TRAIN, "-s", "parallel={tensor: 2, sequence: 2}"],
        ["parallel.sequence", "either layers or sequences"],
    ),
    ("task of a script", [*TRAIN, "-s", "task=script"], ["task", "dslm launch"]),
    (
        "misspelt key of DeepSpeed",
        [*TRAIN, "-s", "deepspeed.zero_optimisation.stage=1"],
        ["zero_optimisation", "zero_optimization"],
    ),
    (
        "value of DeepSpeed",
        [*TRAIN, "-s", "deepspeed.zero_optimization.reduce_bucket_size=true"],
        ["--set deepspeed.zero_optimization.reduce_bucket_size", "true"],
    ),
    ("negative size", [*TRAIN, "-s", "model.architecture.hidden_size=-8"], ["hidden_size", "-8"]),
    ("config of nothing", ["config"], ["recipe", "--check"]),
    ("check of a missing file", ["config", "--check", "gone.json"], ["gone.json"]),
    ("unknown option", [*TRAIN, "--gpus-per-node", "2"], ["--gpus-per-node"]),
    ("script that is missing", ["launch", "gone.py"], ["gone.py"]),
    ("run that is none", ["runs", "show", "hollow"], ["hollow"]),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "hollow").mkdir()
    (tmp_path / "broken.yaml").write_text("extends: quickstart\nbatch: {global_size: 8\nseed: 1\n")
    (tmp_path / "section.yaml").write_text("extends: quickstart\noptimiser: {lr: 1.0e-3}\n")
    (tmp_path / "deep.yaml").write_text("extends: quickstart\nparallel:\n  zero_stagee: 2\n")
    (tmp_path / "script.py").touch()
    (tmp_path / "secret.yaml").write_text(
        f"extends: quickstart\nmodel:\n  revision: ghp_{'a1' * 18}\n"
    )
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "manifest.json").write_text(json.dumps({"dslm": "0"}))
    (taken / "recipe.yaml").write_text("model: {name: gpt2}\n")
    return tmp_path


def _tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("argv", "said"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_bad_input(warm: Dslm, folder: Path, argv: list[str], said: list[str]) -> None:
    before = _tree(folder)
    done = warm(*argv)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    flat = " ".join(done.stderr.split())
    for word in said:
        assert word in flat, done.stderr
    assert not done.stdout
    for secret in ("=abc", "abc}", _TOKEN, "ghp_a1"):
        assert secret not in done.stderr
    assert _tree(folder) == before


def test_a_port_in_use(warm: Dslm, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = warm(*TRAIN, "--master-port", port)
    assert done.returncode == 2
    assert port in done.stderr
    assert not (folder / "runs").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_output_folder(warm: Dslm, folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (disk / "filler").write_bytes(b"x" * 12 * 1024)
        done = warm(*TRAIN, "-o", "disk/run")
        assert done.returncode == 2, done.stderr
        assert "No space left" in done.stderr
        assert [path.name for path in disk.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_debug_shows_the_traceback(warm: Dslm) -> None:
    done = warm("train", "quickstrat", "--debug")
    assert "Traceback" in done.stderr
