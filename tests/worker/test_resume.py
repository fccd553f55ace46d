"""A run that was killed goes on where it was, on any number of ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dslm.run import events
from dslm.run.checkpoints import complete_checkpoints, newest_sound
from dslm.run.directory import RunDirectory
from dslm.run.history import E, read_history
from dslm.run.samples import samples_of_steps
from tests.processes import HANGS
from tests.support.warm import warm_dslm
from tests.worker.conftest import EXPERTS, SMALL, Train, kill_at, losses, newest_pid

pytestmark = pytest.mark.slow
STEPS = 12
LONG: dict[str, Any] = {
    "duration.steps": STEPS,
    "checkpoint.every": 3,
    "data.eval": 0,
    "log.samples": "true",
    "data.sharding": "hash",
}
SETTINGS: dict[str, Any] = {key.replace(".", "__"): value for key, value in LONG.items()}


def _argv(run: Path, ranks: int, stage: int, **more: Any) -> list[str]:
    settings = {**SMALL, **LONG, "parallel.zero_stage": stage, "parallel.ranks": ranks, **more}
    argv = [*warm_dslm(), "train", "quickstart", "-o", str(run)]
    for key, value in settings.items():
        argv += ["-s", f"{key}={value}"]
    return argv


def _train_until_killed(run: Path, ranks: int, stage: int, at: int, **more: Any) -> None:
    """Train, in a new run or on in one, and kill rank 0 with -9 when a step is made."""
    argv = _argv(run, ranks, stage, **more)
    kill_at(argv, run, at, checkpoint_every={**LONG, **more}["checkpoint.every"])


def _all(run: Path, kind: type[E]) -> tuple[E, ...]:
    return read_history(RunDirectory(run)).all(kind)


def _steps(run: Path) -> tuple[events.Step, ...]:
    return _all(run, events.Step)


def _whole_curve(run: Path) -> list[float]:
    """The loss of every step, of the last attempt that made it."""
    return [step.loss or 0.0 for step in read_history(RunDirectory(run)).steps]


def _go_on(run: Path, ranks: int, stage: int, attempts: int = 2, **more: Any) -> None:
    """Bring a run to its end; none of its attempts began again."""
    argv = _argv(run, ranks, stage, **more)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {step.attempt for step in _steps(run)} == set(range(1, attempts + 1))
    for attempt in range(2, attempts + 1):
        first = min(step.step for step in _steps(run) if step.attempt == attempt)
        assert first > 1, "it began again instead of going on"


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """A run on so many ranks at a stage that was killed in the middle; made once, so copy it."""
    known: dict[tuple[int, int], Path] = {}

    def made(ranks: int, stage: int) -> Path:
        if (ranks, stage) not in known:
            known[ranks, stage] = tmp_path_factory.mktemp("killed") / "run"
            _train_until_killed(known[ranks, stage], ranks, stage, at=8)
        return known[ranks, stage]

    return made


Killed = Callable[[int, int], Path]


def _copy(run: Path, folder: Path) -> Path:
    return shutil.copytree(run, folder / "run")


def _samples(run: Path, steps: int = STEPS) -> dict[int, list[int]]:
    """The samples of every step; each was seen once an epoch."""
    found = samples_of_steps(RunDirectory(run))
    places = [place for step in found.values() for place in step]
    assert list(found) == list(range(1, steps + 1))
    assert len(places) == len(set(places)) == steps * 8
    return found


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_at_the_same_world_size_the_curve_is_the_same_bit_for_bit(
    trained: Train, killed: Killed, tmp_path: Path, stage: int
) -> None:
    undisturbed = trained(ranks=2, parallel__zero_stage=stage, **SETTINGS)
    run = _copy(killed(2, stage), tmp_path)
    _go_on(run, 2, stage)
    assert _whole_curve(run) == losses(undisturbed)
    assert _samples(run) == _samples(undisturbed)


# (ranks, stage) of each attempt; all but the last are killed
CHAINS = {
    "stage 0": ((2, 0), (1, 0), (2, 0)),
    "stage 1": ((2, 1), (1, 1), (4, 1), (2, 1)),
    "stage 2": ((2, 2), (1, 2), (4, 2), (2, 2)),
    "stage 3": ((2, 3), (1, 3), (4, 3), (2, 3)),
    "all stages": ((2, 0), (2, 3), (1, 2), (2, 1), (2, 2)),
}
_CHAIN_STEPS = 20
_KILLED_AT = (5, 10, 14, 17)


@pytest.mark.parametrize("chain", CHAINS)
def test_at_other_world_sizes_and_stages_the_curve_is_the_same(
    trained: Train, tmp_path: Path, chain: str
) -> None:
    ways, run, longer = CHAINS[chain], tmp_path / "run", {"duration.steps": _CHAIN_STEPS}
    for (ranks, stage), step in zip(ways[:-1], _KILLED_AT, strict=False):
        _train_until_killed(run, ranks, stage, step, **longer)
    _go_on(run, *ways[-1], attempts=len(ways), **longer)
    settings = {**SETTINGS, "duration__steps": _CHAIN_STEPS, "parallel__zero_stage": ways[0][1]}
    undisturbed = trained(ranks=2, **settings)
    assert _whole_curve(run) == pytest.approx(losses(undisturbed), abs=1e-4)
    assert _samples(run, _CHAIN_STEPS) == _samples(undisturbed, _CHAIN_STEPS)
    converted = _all(run, events.Convert)
    changes = len(ways) - 1 if ways[-1][1] else 0  # without ZeRO every rank has the whole state
    assert [(event.seconds or 0) > 0 for event in converted] == [True] * changes
    assert not list((run / "checkpoints").glob(".*"))


# (ranks, stage, sizes) of each attempt; all but the last are killed
LAYOUTS: dict[str, tuple[tuple[int, int, dict[str, int]], ...]] = {
    "layers and sequences": (
        (2, 1, {"tensor": 2}), (2, 2, {"sequence": 2}),
        (4, 3, {"sequence": 2}), (4, 1, {"tensor": 2}),
    ),
    "portable throughout": ((2, 2, {}), (1, 3, {}), (2, 0, {}), (2, 1, {"tensor": 2})),
    # a schedule of torch's has a rate for each group of parameters, of which shared experts are one
    "experts": ((2, 2, {}), (2, 1, {"expert": 2}), (1, 3, {}), (2, 1, {"expert": 2})),
}  # fmt: skip


@pytest.mark.parametrize("chain", LAYOUTS)
def test_in_other_layouts_the_curve_is_the_same(trained: Train, tmp_path: Path, chain: str) -> None:
    run, steps, killed_at = tmp_path / "run", _CHAIN_STEPS, _KILLED_AT
    more: dict[str, Any] = {"duration.steps": steps}
    if chain == "portable throughout":
        more["checkpoint.format"] = "portable"
    if chain == "experts":  # of twenty steps two differ by up to 9e-4, and those after them don't
        steps, killed_at = 2 * steps, (11, 19, 27, 35)
        more |= {"duration.steps": steps, "checkpoint.every": 6}
        mixture = {key.replace("__", "."): value for key, value in EXPERTS.items()}
        more |= {**mixture, "schedule.name": "constant"}
    ways = [
        (ranks, stage, more | {f"parallel.{key}": size for key, size in sizes.items()})
        for ranks, stage, sizes in LAYOUTS[chain]
    ]
    for (ranks, stage, settings), step in zip(ways[:-1], killed_at, strict=False):
        _train_until_killed(run, ranks, stage, step, **settings)
    ranks, stage, settings = ways[-1]
    _go_on(run, ranks, stage, attempts=len(ways), **settings)
    same = {key.replace(".", "__"): value for key, value in more.items()}
    undisturbed = trained(ranks=2, **{**SETTINGS, **same, "parallel__zero_stage": 1})
    _samples(run, steps)
    # two trainings without a break differ as much by the order of sums in fp32: over 60 steps 4e-5
    # between layers shared by two ranks and none, 6e-6 between one rank and two
    assert _whole_curve(run) == pytest.approx(losses(undisturbed), abs=1e-4)


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize(("damage", "said"), [(_flip_a_bit, "damaged"), (_cut_off, "not complete")])
def test_a_damaged_checkpoint_is_found_and_the_older_one_taken(
    trained: Train, killed: Killed, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    undisturbed = trained(ranks=2, parallel__zero_stage=2, **SETTINGS)
    run = _copy(killed(2, 2), tmp_path)
    newest = complete_checkpoints(run / "checkpoints")[-1]
    damage(max((newest.path / name for name in newest.files), key=lambda p: p.stat().st_size))
    older, problems = newest_sound(run / "checkpoints")
    assert older is not None
    assert older.step < newest.step
    assert said in problems[0]
    _go_on(run, 2, 2)
    phases = _all(run, events.Phase)
    assert any(f"step-{newest.step} is {said}" in phase.detail for phase in phases)
    assert _whole_curve(run) == losses(undisturbed)


def test_another_recipe_or_length_is_refused_with_the_difference(
    killed: Killed, tmp_path: Path
) -> None:
    run = _copy(killed(2, 2), tmp_path)
    for more, code, said in (
        ({"optimizer.lr": 0.5}, 2, "optimizer.lr"),
        ({"duration.steps": STEPS - 1, "log.every": 2}, 2, "duration.steps"),
    ):
        argv = _argv(run, 2, 2) + [part for k, v in more.items() for part in ("-s", f"{k}={v}")]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert said in done.stderr


def test_other_data_is_refused(killed: Killed, tmp_path: Path) -> None:
    run = _copy(killed(2, 2), tmp_path)
    for manifest in (run / "checkpoints").glob("step-*/manifest.json"):
        facts = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**facts, "data": "of another time"}))
    done = subprocess.run(_argv(run, 2, 2), capture_output=True, text=True)
    assert done.returncode == 1
    assert "the data has changed since step 6" in done.stderr


def test_a_checkpoint_holds_what_a_run_needs(killed: Killed) -> None:
    newest = complete_checkpoints(killed(2, 2) / "checkpoints")[-1]
    facts = json.loads((newest.path / "manifest.json").read_text())
    assert (facts["step"], facts["world_size"], facts["zero_stage"]) == (newest.step, 2, 2)
    assert facts["versions"]["deepspeed"]
    assert facts["data"]
    for name in ("recipe.yaml", "trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"):
        assert name in newest.files
    states = [name for name in newest.files if name.endswith("_states.pt")]
    assert len(states) == 3  # the model's, and the optimizer's of each rank


def test_killed_while_saving_the_older_checkpoint_stays(trained: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(_argv(run, 2, 2), stderr=subprocess.DEVNULL)
    partial = run / "checkpoints" / ".step-6.partial"
    while not partial.is_dir():
        assert process.poll() is None
        time.sleep(0.0005)
    for rank in (0, 1):
        with suppress(ProcessLookupError):  # the end of the other one may have ended it
            os.kill(newest_pid(run, rank), signal.SIGKILL)
    assert process.wait(HANGS) == 1
    found, problems = newest_sound(run / "checkpoints")
    assert found is not None
    assert found.step == 3
    assert problems == []
    _go_on(run, 2, 2)
    undisturbed = trained(ranks=2, parallel__zero_stage=2, **SETTINGS)
    assert _whole_curve(run) == losses(undisturbed)


def test_killed_after_its_model_was_written_it_still_ends(trained: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained(ranks=2, parallel__zero_stage=2, **SETTINGS), run)
    file = run / "events.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"end"' not in line))
    (run / ".model.partial").mkdir()
    (run / ".model.partial" / "model-00001-of-00009.safetensors").touch()
    done = subprocess.run(_argv(run, 2, 2), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert isinstance(events.tail_events(file).events[-1], events.End)
    assert len(list((run / "model").glob("*.safetensors"))) == 1
    assert not (run / ".model.partial").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize(
    ("size", "newest"),
    [
        ("24k", None),  # there is no room for what dslm itself writes down
        ("256k", None),  # nor for the tokenizer
        ("2m", None),  # nor for the last of the first checkpoint's files
        ("4m", 3),  # there is for one checkpoint, not for the last of the second one's files
        ("5m", 6),
    ],
)
def test_a_full_disk_leaves_the_older_checkpoint_and_is_said(
    tmp_path: Path, size: str, newest: int | None
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        done = subprocess.run(_argv(disk / "run", 2, 2), capture_output=True, text=True)
        assert done.returncode == 1
        assert "the disk is full" in done.stderr
        assert "dslm itself failed" not in done.stderr
        found, problems = newest_sound(disk / "run" / "checkpoints")
        assert (found.step if found is not None else None) == newest
        assert problems == []
        assert not list((disk / "run").glob("checkpoints/.step-*")), "it still fills the disk"
    finally:
        subprocess.run(["umount", disk], check=True)
