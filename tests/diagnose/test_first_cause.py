"""The first cause is found among what the ranks left behind, not what merely followed from it.

These write a run directory as ranks and launcher do, and read the diagnosis.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dslm.cli.screens.failure import panel, why_table
from dslm.cluster.devices import Device, cpu_device, device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.job import Job, plan_document, resolve_job
from dslm.diagnose.blame import RULES
from dslm.diagnose.explain import Diagnosis
from dslm.diagnose.witness import Source
from dslm.errors import DataError, Where
from dslm.host.kernel import OomVerdict
from dslm.launch.remote_processes import RemoteProcesses
from dslm.recipe.load import dump_recipe, load_recipe
from dslm.run.documents import HostSlots, write_document
from dslm.run.endings import Kind, Loss, report_of
from dslm.run.events import Error, Resume, Step, stamp, tail_events, write_event
from dslm.run.manifest import new_manifest
from tests.diagnose.left import (
    CASES,
    PEER,
    RETURN_CODE,
    Left,
    cause_beside_lost_peers,
    killed_beside_lost_peer,
    traceback,
)


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return Left(tmp_path / "run")


@pytest.mark.parametrize(("case", "expected"), CASES.items(), ids=[c.__name__ for c in CASES])
def test_who_failed_first_and_why(
    left: Left,
    case: Callable[[Left], Diagnosis],
    expected: tuple[str | None, int | None, str, str],
) -> None:
    found = case(left)
    source = Source(found.source).name if found.source else ""
    assert (found.id, found.rank, found.rule, source) == expected
    assert found.judged[0].rank == found.rank
    assert found.known == (found.id is not None)


def test_those_that_failed_after_the_first_are_named(left: Left) -> None:
    assert cause_beside_lost_peers(left).followers == (0, 2)


def test_a_rank_that_noticed_a_loss_and_fell_silent_is_one_witness(left: Left) -> None:
    native = (
        f"terminate called after throwing an instance of 'std::runtime_error'\n  what():  {PEER}\n"
    )
    left.rank(0, log=native, lost=Loss.PROCESS, ended=10.0, left=10.0)
    left.rank(1)
    assert left.diagnose(Kind.PROCESS, 0, noticed=10.02).followers == ()


@pytest.mark.parametrize("code", [-9, -7, -11, -4, -15])
def test_the_signal_that_ended_a_rank_is_named(left: Left, code: int) -> None:
    left.rank(0, lost=Loss.PROCESS)
    left.launcher(RETURN_CODE.format(code))
    found = left.diagnose(Kind.PROCESS, 0)
    assert f"it was ended by {signal.Signals(-code).name}" in found.facts
    assert found.id is not None


def test_a_host_whose_kernel_can_not_be_asked_is_said_to_be_so(left: Left) -> None:
    found = killed_beside_lost_peer(left)
    assert any("can't be read from here" in fact and "dmesg" in fact for fact in found.facts)


@pytest.mark.parametrize(
    ("killed", "cause", "speaks_of_memory"),
    [(True, "host-memory-killed", True), (False, "killed", False), (None, "killed", True)],
)
def test_memory_is_spoken_of_only_as_far_as_the_kernel_does(
    left: Left, monkeypatch: pytest.MonkeyPatch, killed: bool | None, cause: str,
    speaks_of_memory: bool,
) -> None:  # fmt: skip
    verdict = OomVerdict(killed=killed, said="what the kernel says")
    monkeypatch.setattr(RemoteProcesses, "oom_verdict", lambda *a, **k: verdict)
    left.rank(0, lost=Loss.PROCESS)
    left.launcher(RETURN_CODE.format(-9))
    found = left.diagnose(Kind.PROCESS, 0)
    assert found.id == cause
    assert "what the kernel says" in found.facts
    told = " ".join((found.cause, *found.ways))
    assert ("memory" in told) == speaks_of_memory
    assert "memory" not in found.ways[0].split("(")[0] or killed  # never first, but by the kernel


def test_a_warning_is_not_taken_for_the_cause(left: Left) -> None:
    warning = "[WARNING] async_io requires the dev libaio .so object and headers\n"
    left.rank(0, log=warning, lost=Loss.PROCESS)
    left.launcher(warning + RETURN_CODE.format(-9))
    assert left.diagnose(Kind.PROCESS, 0).id == "killed"
    left.rank(0, log=warning, exit_code=1, ended=1.0)
    assert left.diagnose(Kind.RANK, 0, code=1).id is None


def test_dslms_own_error_is_told_in_its_own_words(left: Left) -> None:
    failure = DataError(
        "there are no samples", where=Where(key="data.train"), hint="add longer documents"
    )
    left.rank(0, exit_code=1, ended=1.0, report=report_of(failure))
    found = left.diagnose(Kind.RANK, 0)
    assert found.cause == "there are no samples"
    assert found.said == "data.train"
    assert found.remedy == "add longer documents"


def test_an_unknown_failure_shows_the_first_traceback_and_says_so(left: Left) -> None:
    harmless = traceback("ImportError: an optional part")
    token = "hf_" + "a" * 34
    fatal = traceback(f"ValueError: {token}", "LookupError: of it")
    log = "going on".join((harmless, "\n" + fatal))
    left.rank(0, f"ValueError: {token}", "LookupError: of it", log=log)
    found = left.diagnose(Kind.RANK, 0)
    assert not found.known
    assert "unknown" in found.cause
    assert "ValueError: …" in found.traceback  # a token is not repeated
    assert "optional part" not in found.traceback
    assert "LookupError" not in found.traceback  # what followed from it


def test_code_in_a_traceback_is_not_taken_for_a_message(left: Left) -> None:
    text = (
        "Traceback (most recent call last):\n"
        '  File "a.py", line 1, in f\n'
        '    raise OSError("No space left on device") if full else ValueError("x")\n'
        "ValueError: x\n"
    )
    left.rank(0, exit_code=1, ended=1.0, log=text)
    assert left.diagnose(Kind.RANK, 0).id is None


def test_the_step_is_that_of_the_attempt(left: Left) -> None:
    left.rank(0, "MemoryError", ended=1.0)
    write_event(left.run.events, Step(**stamp(0), step=90))
    write_event(left.run.events, Resume(**stamp(1), step=80))
    write_event(left.run.events, Step(**stamp(1), step=85))
    assert left.diagnose(Kind.RANK, 0).step == 85


OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total "
    "capacity of 23.65 GiB of which 1.10 GiB is free. Process 7 has 4.00 GiB memory in use. "
    "Including non-PyTorch memory, this process has 18.50 GiB memory in use. Of the allocated "
    "memory 17.00 GiB is allocated by PyTorch, and 194.87 MiB is reserved by PyTorch but "
    "unallocated."
)


def planned(left: Left, *overrides: str, device: Device | None = None) -> Job:
    """Put the files of a run that was planned for two devices of 24 GiB into its directory."""
    device = device or device_named("rtx-4090")
    cluster = Cluster(hosts=(Host("w1", 2),), device=device)
    job = resolve_job(load_recipe("llama-3.2-1b", overrides), cluster)
    left.run.recipe.write_text(dump_recipe(job.recipe))
    left.run.plan.write_text(json.dumps(plan_document(job)))
    hosts = [HostSlots(host="w1", slots=2)]
    write_document(left.run.manifest, new_manifest(name="x", command=[], hosts=hosts))
    return job


def test_out_of_gpu_memory_shows_the_plan_beside_the_measured_and_three_ways_out(
    left: Left,
) -> None:
    job = planned(left, "parallel.zero_stage=2", "batch.micro_size=4")
    left.rank(0, OOM)
    write_event(left.run.events, Step(**stamp(1), step=3, memory_peak_bytes=15 * 2**30))
    found = left.diagnose(Kind.RANK, 0)
    assert found.id == "gpu-memory"
    memory = job.plan.choice.memory
    assert memory is not None
    text = "\n".join(found.facts)
    assert f"planned: {memory.total / 2**30:.1f} GiB of 24.0 GiB a device" in text
    assert f"forward {memory.phases['forward'] / 2**30:.1f} GiB" in text
    assert "17.0 GiB allocated by PyTorch" in text
    assert "3.0 GiB more requested" in text
    assert "up to 15.0 GiB in the steps before" in text
    assert "other processes hold 4.0 GiB" in text
    assert len(found.ways) == 3
    assert "nvidia-smi" in found.ways[0]
    assert any("--set batch.micro_size=1" in way for way in found.ways)


def test_the_ways_out_are_found_where_the_model_lies_beside_where_the_run_began(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = load_recipe("llama-3.2-1b").recipe.model.architecture
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text(json.dumps(architecture))
    monkeypatch.chdir(tmp_path)
    planned(left, "parallel.zero_stage=2", "batch.micro_size=4", "model.name=./base")
    left.rank(0, OOM)
    found = left.diagnose(Kind.RANK, 0).ways
    planned(left, "parallel.zero_stage=2", "batch.micro_size=4")
    assert found == left.diagnose(Kind.RANK, 0).ways


def test_the_ways_out_learn_from_the_run_that_it_needs_more_than_was_planned(left: Left) -> None:
    job = planned(left, "parallel.zero_stage=2", "batch.micro_size=1")
    assert job.plan.fits
    said = OOM.replace("Process 7 has 4.00 GiB memory in use. ", "").replace("1.10", "5.10")
    left.rank(0, said)
    ways = left.diagnose(Kind.RANK, 0).ways
    assert len(ways) == 3
    assert not any("micro_size" in way for way in ways)  # it is 1 already


def test_memory_in_pieces_has_its_own_way_out(left: Left) -> None:
    planned(left)
    said = OOM.replace("194.87 MiB is reserved", "6.00 GiB is reserved")
    left.rank(0, said)
    assert any("expandable_segments" in way for way in left.diagnose(Kind.RANK, 0).ways)


def test_out_of_host_memory_shows_what_was_planned_for_it(left: Left) -> None:
    job = planned(left, "parallel.zero_stage=2", "parallel.offload=optimizer", "data.workers=2")
    memory = job.plan.choice.memory
    assert memory is not None
    left.rank(0, "MemoryError", ended=1.0)
    found = left.diagnose(Kind.RANK, 0)
    assert f"{memory.host / 2**30:.1f} GiB of each host's memory" in found.facts[0]
    assert len(found.ways) == 3
    assert "--set data.workers=0" in found.ways[0]


def test_on_a_cpu_the_memory_of_the_ranks_is_the_hosts(left: Left) -> None:
    planned(left, "parallel.zero_stage=2", device=cpu_device(64 * 2**30))
    left.rank(0, lost=Loss.PROCESS)
    left.launcher(RETURN_CODE.format(-9))
    left.rank(1, "MemoryError", ended=1.0)
    found = left.diagnose(Kind.RANK, 1)
    assert "of 64.0 GiB a rank" in found.facts[0]
    assert len(found.ways) == 3


def test_a_script_without_a_plan_still_gets_the_ways_of_the_catalogue(left: Left) -> None:
    left.rank(0, OOM)
    hosts = [HostSlots(host="w1", slots=2)]
    write_document(left.run.manifest, new_manifest(name="x", command=[], hosts=hosts))
    found = left.diagnose(Kind.RANK, 0)
    assert "batch.micro_size=1" in " ".join(found.ways)


def test_the_panel_can_be_made_from_the_event_alone(left: Left) -> None:
    from rich.console import Console

    left.rank(0, PEER)
    left.rank(1, "MemoryError", ended=0.5)
    found = left.diagnose(Kind.RANK, 1)
    write_event(left.run.events, found.event(1))
    (event,) = tail_events(left.run.events).events
    assert isinstance(event, Error)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(panel(event, Path("runs/x")))
        console.print(why_table(event))
    shown = capture.get()
    assert "rank 1 on w1 failed first" in shown
    assert found.cause in shown
    assert "runs/x/logs/attempt-1/rank-1.log" in shown
    assert "rank 0" in shown  # what followed
    rows = [line for line in shown.splitlines() if "(blamed)" in line]
    assert len(rows) == 1
    assert "rank 1" in rows[0]
    assert "host-memory" in rows[0]
    assert all(rule.text in shown for rule in RULES)
