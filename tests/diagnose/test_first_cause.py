"""The first cause is found among what the ranks left behind, not what merely followed from it.

These write a run directory as ranks and launcher do, and read the diagnosis.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dslm.cli.screens.failure import headline, panel
from dslm.cluster.devices import Device, cpu_device, device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.job import Job, plan_document, resolve_job
from dslm.diagnose.explain import Diagnosis, diagnose
from dslm.launch.supervise import Outcome, Status
from dslm.recipe.load import dump_recipe, load_recipe
from dslm.run.directory import RunDirectory
from dslm.run.documents import HostSlots, write_document
from dslm.run.events import Error, EventName, append_event, parse_event
from dslm.run.manifest import new_manifest

PEER = (
    "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:29595. "
    "This is typically caused by a remote worker crashing."
)
RETURN_CODE = "[ERROR] [launch.py:259:sigkill_handler] ['python', '-u'] exits with return code = {}"


def traceback(*errors: str) -> str:
    """The tracebacks of exceptions that were raised from each other."""
    link = "\n\nThe above exception was the direct cause of the following exception:\n\n"
    frame = 'Traceback (most recent call last):\n  File "train.py", line 1, in work\n    work()\n'
    return link.join(frame + error for error in errors) + "\n"


class Left:
    """What an attempt left behind."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDirectory(folder)
        self.run.logs(1).mkdir(parents=True)

    def rank(self, rank: int, *, log: str | None = "", host: str = "w1", **status: Any) -> None:
        whole = {"rank": rank, "pid": 2**22 + 1, "start_time": 1, "host": host, **status}
        self.run.rank_status(1, rank).write_text(json.dumps(whole))
        if log is not None:
            self.run.rank_log(1, rank).write_text(log)

    def launcher(self, text: str) -> None:
        (self.run.logs(1) / "launcher.log").write_text(text)

    def diagnose(self, rank: int | None = None, reason: str = "", **outcome: Any) -> Diagnosis:
        return diagnose(
            self.run,
            Outcome(status=Status.FAILED, attempt=1, reason=reason, failed_rank=rank, **outcome),
        )


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return Left(tmp_path / "run")


def test_the_rank_with_the_cause_goes_before_one_that_lost_its_peer(left: Left) -> None:
    left.rank(0, exit_code=1, ended=1.0, error=PEER, log=traceback(PEER))
    disk = "OSError: [Errno 28] No space left on device"
    left.rank(1, exit_code=1, ended=1.2, error=disk, log=traceback(disk), host="w2")
    left.rank(2, exit_code=1, ended=1.1, error=PEER, log=traceback(PEER))
    found = left.diagnose(0, PEER)
    assert (found.id, found.rank, found.host) == ("disk-full", 1, "w2")
    assert found.followers == (0, 2)


def test_an_unknown_error_goes_before_a_lost_peer(left: Left) -> None:
    left.rank(0, exit_code=1, ended=1.0, error=PEER, log=traceback(PEER))
    left.rank(1, exit_code=1, ended=1.2, error="LookupError: x", log=traceback("LookupError: x"))
    assert left.diagnose(0, PEER).rank == 1


def test_of_two_causes_the_one_that_the_supervisor_saw_first_counts(left: Left) -> None:
    for rank in (0, 1):
        error = "MemoryError"
        left.rank(rank, exit_code=1, ended=2.0 - rank, error=error, log=traceback(error))
    assert left.diagnose(1, "MemoryError").rank == 1


def test_a_rank_that_the_launcher_ended_is_not_the_first(left: Left) -> None:
    """DeepSpeed's launcher ends the others at once, and the supervisor may see that first."""
    left.rank(0)
    left.rank(1, exit_code=1, ended=1.0, error="IndexError: Target 5 is out of bounds.",
              log=traceback("IndexError: Target 5 is out of bounds."))  # fmt: skip
    left.launcher(RETURN_CODE.format(1))
    found = left.diagnose(0, "its process was killed from outside")
    assert (found.id, found.rank) == ("label-bounds", 1)


def test_a_killed_rank_goes_before_those_that_lost_it(left: Left) -> None:
    left.rank(0, exit_code=1, ended=1.0, error=PEER, log=traceback(PEER))
    left.rank(1, host="w2")
    left.launcher("w2: " + RETURN_CODE.format(-9))
    found = left.diagnose(1, "its process was killed from outside")
    assert (found.id, found.rank, found.host, found.retry) == ("killed", 1, "w2", True)
    assert "it was ended by SIGKILL" in found.facts
    # another host can't be asked here, and that is said
    assert any("can't be read from here" in fact and "dmesg" in fact for fact in found.facts)


def test_a_signal_elsewhere_explains_why_peers_were_lost(left: Left) -> None:
    """The ranks of another host did not get so far as to write anything."""
    left.rank(0, exit_code=1, ended=1.0, error=PEER, log=traceback(PEER))
    left.launcher("w2: " + RETURN_CODE.format(-9))
    assert left.diagnose(0, PEER).id == "killed"


def test_only_a_lost_peer_is_what_it_is(left: Left) -> None:
    left.rank(0, exit_code=1, ended=1.0, error=PEER, log=traceback(PEER))
    found = left.diagnose(0, PEER)
    assert (found.id, found.rank) == ("peer-lost", 0)


def test_the_batch_system_explains_a_killed_rank(left: Left) -> None:
    left.rank(0)
    left.launcher(
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have "
        "been OOM Killed.\nsrun: error: w1: task 0: Out Of Memory\n" + RETURN_CODE.format(-9)
    )
    assert left.diagnose(0, "its process was killed from outside").id == "slurm-memory"


@pytest.mark.parametrize(
    ("code", "name", "expected"),
    [
        (-7, "SIGBUS", "shared-memory"),
        (-11, "SIGSEGV", "crashed"),
        (-4, "SIGILL", "illegal-instruction"),
    ],
)
def test_the_signal_that_ended_a_rank_is_named(
    left: Left, code: int, name: str, expected: str
) -> None:
    left.rank(0)
    left.launcher(RETURN_CODE.format(code))
    found = left.diagnose(0, "its process was killed from outside")
    assert found.id == expected
    assert f"it was ended by {name}" in found.facts


def test_what_native_code_said_before_it_aborted_explains_the_signal(left: Left) -> None:
    left.rank(0, log=(
        "[rank0]:[E321 02:07:08.4 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective "
        "operation timeout: WorkNCCL(SeqNum=1580) ran for 600060 milliseconds before timing out.\n"
    ))  # fmt: skip
    left.launcher(RETURN_CODE.format(-6))
    assert left.diagnose(0, "its process was killed from outside").id == "nccl-timeout"


def test_a_warning_is_not_taken_for_the_cause(left: Left) -> None:
    warning = "[WARNING] async_io requires the dev libaio .so object and headers\n"
    left.rank(0, log=warning)
    left.launcher(warning + RETURN_CODE.format(-9))
    assert left.diagnose(0, "its process was killed from outside").id == "killed"
    left.rank(0, log=warning, exit_code=1, ended=1.0, error="it called sys.exit(1)")
    assert left.diagnose(0, "it called sys.exit(1)").id is None


def test_what_the_supervisor_saw_is_the_cause_where_ranks_are_silent(left: Left) -> None:
    left.rank(1, host="w2")
    words = "no rank made progress for 61 s while training; rank 1 on w2 differs"
    found = left.diagnose(1, words, host="w2")
    assert (found.id, found.rank, found.retry) == ("stalled", 1, True)


def test_without_ranks_the_launcher_says_why(left: Left) -> None:
    left.launcher(
        "w2: ssh: connect to host w2 port 22: Connection refused\n"
        "pdsh@w1: w2: ssh exited with exit code 255\n"
    )
    found = left.diagnose(None, "the connection to w2 ended (ssh exited with 255)", host="w2")
    assert (found.rank, found.host, found.retry) == (None, "w2", True)
    assert found.id == "ssh-refused"
    assert headline(found.event(1)) == "host w2 failed first, before the first step"


def test_a_log_on_another_host_is_made_up_for_by_the_launchers(left: Left) -> None:
    left.rank(3, exit_code=1, ended=1.0, error="KeyError: 'text'", log=None, host="w2")
    left.launcher("w2: starting\n")
    found = left.diagnose(3, "KeyError: 'text'")
    assert (found.id, found.log) == ("data-field", "logs/attempt-1/launcher.log")


def test_dslms_own_error_is_told_in_its_own_words(left: Left) -> None:
    left.rank(
        0, exit_code=1, ended=1.0,
        error="data.train: there is not one sample (add longer documents)",
        log=traceback("dslm.errors.DataError: there is not one sample"),
    )  # fmt: skip
    found = left.diagnose(0, "…")
    assert found.cause == "there is not one sample"
    assert found.said == "data.train"
    assert found.remedy == "add longer documents"


def test_an_unknown_failure_shows_the_first_traceback_and_says_so(left: Left) -> None:
    harmless = traceback("ImportError: an optional part")
    token = "hf_" + "a" * 34
    fatal = traceback(f"ValueError: {token}", "LookupError: of it")
    log = "going on".join((harmless, "\n" + fatal))
    left.rank(0, exit_code=1, ended=1.0, error="LookupError: of it", log=log)
    found = left.diagnose(0, "LookupError: of it")
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
    left.rank(0, exit_code=1, ended=1.0, error="ValueError: x", log=text)
    assert left.diagnose(0, "ValueError: x").id is None


def test_the_step_is_that_of_the_attempt(left: Left) -> None:
    left.rank(0, exit_code=1, ended=1.0, error="MemoryError", log=traceback("MemoryError"))
    append_event(left.run.events, EventName.STEP, 0, step=90)
    append_event(left.run.events, EventName.RESUME, 1, step=80)
    append_event(left.run.events, EventName.STEP, 1, step=85)
    assert left.diagnose(0, "MemoryError").step == 85


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
    left.rank(0, exit_code=1, ended=1.0, error=OOM.split(". GPU")[0], log=traceback(OOM))
    append_event(left.run.events, EventName.STEP, 1, step=3, memory_peak_bytes=15 * 2**30)
    found = left.diagnose(0, "")
    assert found.id == "gpu-memory"
    memory = job.plan.choice.memory
    assert memory is not None
    text = "\n".join(found.facts)
    assert f"planned: {memory.total / 2**30:.1f} GiB of 24.0 GiB a device" in text
    assert f"forward {memory.phases['forward'] / 2**30:.1f} GiB" in text
    assert "17.0 GiB allocated by PyTorch" in text
    assert "3.0 GiB more asked for" in text
    assert "up to 15.0 GiB in the steps before" in text
    assert "other processes hold 4.0 GiB" in text
    assert len(found.ways) == 3
    assert "nvidia-smi" in found.ways[0]
    assert any("--set batch.micro_size=1" in way for way in found.ways)


def test_the_ways_out_learn_from_the_run_that_it_needs_more_than_was_planned(left: Left) -> None:
    job = planned(left, "parallel.zero_stage=2", "batch.micro_size=1")
    assert job.plan.fits
    said = OOM.replace("Process 7 has 4.00 GiB memory in use. ", "").replace("1.10", "5.10")
    left.rank(0, exit_code=1, ended=1.0, error="OutOfMemoryError", log=traceback(said))
    ways = left.diagnose(0, "").ways
    assert len(ways) == 3
    assert not any("micro_size" in way for way in ways)  # it is 1 already


def test_memory_in_pieces_has_its_own_way_out(left: Left) -> None:
    planned(left)
    said = OOM.replace("194.87 MiB is reserved", "6.00 GiB is reserved")
    left.rank(0, exit_code=1, ended=1.0, error="OutOfMemoryError", log=traceback(said))
    assert any("expandable_segments" in way for way in left.diagnose(0, "").ways)


def test_out_of_host_memory_shows_what_was_planned_for_it(left: Left) -> None:
    job = planned(left, "parallel.zero_stage=2", "parallel.offload=optimizer", "data.workers=2")
    memory = job.plan.choice.memory
    assert memory is not None
    left.rank(0, exit_code=1, ended=1.0, error="MemoryError", log=traceback("MemoryError"))
    found = left.diagnose(0, "MemoryError")
    assert f"{memory.host / 2**30:.1f} GiB of each host's memory" in found.facts[0]
    assert len(found.ways) == 3
    assert "--set data.workers=0" in found.ways[0]


def test_on_a_cpu_the_memory_of_the_ranks_is_the_hosts(left: Left) -> None:
    planned(left, "parallel.zero_stage=2", device=cpu_device(64 * 2**30))
    left.rank(0)
    left.launcher(RETURN_CODE.format(-9))
    left.rank(1, exit_code=1, ended=1.0, error="MemoryError", log=traceback("MemoryError"))
    found = left.diagnose(1, "MemoryError")
    assert "of 64.0 GiB a rank" in found.facts[0]
    assert len(found.ways) == 3


def test_a_script_without_a_plan_still_gets_the_ways_of_the_catalogue(left: Left) -> None:
    left.rank(0, exit_code=1, ended=1.0, error="OutOfMemoryError", log=traceback(OOM))
    hosts = [HostSlots(host="w1", slots=2)]
    write_document(left.run.manifest, new_manifest(name="x", command=[], hosts=hosts))
    found = left.diagnose(0, "")
    assert "batch.micro_size=1" in " ".join(found.ways)


def test_the_panel_can_be_made_from_the_event_alone(left: Left) -> None:
    from rich.console import Console

    left.rank(0, exit_code=1, ended=1.0, error=PEER, log=traceback(PEER))
    left.rank(1, exit_code=1, ended=0.5, error="MemoryError", log=traceback("MemoryError"))
    found = left.diagnose(1, "MemoryError")
    append_event(left.run.events, EventName.ERROR, 1, **found.fields())
    event = parse_event(left.run.events.read_text().splitlines()[-1])
    assert isinstance(event, Error)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(panel(event, Path("runs/x")))
    shown = capture.get()
    assert "rank 1 on w1 failed first" in shown
    assert found.cause in shown
    assert "runs/x/logs/attempt-1/rank-1.log" in shown
    assert "rank 0" in shown  # what followed
