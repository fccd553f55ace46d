"""What attempts leave behind, written as ranks and launcher do: cases of who failed first, and why.

`python -m tests.diagnose.left FOLDER` prints how each is judged, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dslm.diagnose.explain import Diagnosis, diagnose
from dslm.launch.outcome import Difference, Odd, Outcome, Status
from dslm.run.directory import RunDirectory
from dslm.run.documents import RankStatus, write_document
from dslm.run.endings import ErrorReport, Kind, Loss, OwnError, Raised

PEER = (
    "RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:29595. "
    "This is typically caused by a remote worker crashing."
)
DISK = "OSError: [Errno 28] No space left on device"
RETURN_CODE = "[ERROR] [launch.py:259:sigkill_handler] ['python', '-u'] exits with return code = {}"
FRAME = '  File "train.py", line 1, in work\n    work()\n'


def traceback(*errors: str) -> str:
    """The tracebacks of exceptions that were raised from each other, as Python prints them."""
    link = "\n\nThe above exception was the direct cause of the following exception:\n\n"
    header = "Traceback (most recent call last):\n" + FRAME
    return link.join(header + error for error in errors) + "\n"


def report(*errors: str, own: OwnError | None = None) -> ErrorReport:
    """The report of exceptions that were raised from each other: `TYPE: MESSAGE`."""
    chain = []
    for error in errors:
        name, _, message = error.partition(": ")
        chain.append(Raised(type=name, message=message, frames=FRAME))
    return ErrorReport(chain=tuple(chain), own=own)


class Left:
    """What an attempt left behind."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDirectory(folder)
        self.run.logs(1).mkdir(parents=True)

    def rank(
        self,
        rank: int,
        *errors: str,
        log: str = "",
        host: str = "w1",
        own: OwnError | None = None,
        **status: Any,
    ) -> None:
        """A rank that ended with exceptions, or without a word where there are none."""
        if errors:
            status = {"exit_code": 1, "ended": 1.0, "report": report(*errors, own=own), **status}
        whole = RankStatus(rank=rank, pid=2**22 + 1, start_time=1, host=host, **status)
        write_document(self.run.rank_status(1, rank), whole)
        self.run.rank_log(1, rank).write_text(log or (traceback(*errors) if errors else ""))

    def launcher(self, text: str) -> None:
        """What the launcher printed."""
        self.run.launcher_log(1).write_text(text)

    def diagnose(self, kind: Kind, rank: int | None = None, **seen: Any) -> Diagnosis:
        """Explain it; the supervisor saw this rank fail first."""
        return diagnose(
            self.run,
            Outcome(status=Status.FAILED, attempt=1, kind=kind, failed_rank=rank, **seen),
        )


def cause_beside_lost_peers(left: Left) -> Diagnosis:
    left.rank(0, PEER)
    left.rank(1, DISK, ended=1.2, host="w2")
    left.rank(2, PEER, ended=1.1)
    return left.diagnose(Kind.RANK, 0)


def unknown_beside_lost_peer(left: Left) -> Diagnosis:
    left.rank(0, PEER)
    left.rank(1, "LookupError: x", ended=1.2)
    return left.diagnose(Kind.RANK, 0)


def two_causes(left: Left) -> Diagnosis:
    for rank in (0, 1):
        left.rank(rank, "MemoryError", ended=2.0 - rank)
    return left.diagnose(Kind.RANK, 1)


def ended_by_the_launcher(left: Left) -> Diagnosis:
    """DeepSpeed's launcher ends the others at once, and the supervisor may see that first."""
    left.rank(0, lost=Loss.PROCESS)
    left.rank(1, "IndexError: Target 5 is out of bounds.")
    left.launcher(RETURN_CODE.format(1))
    return left.diagnose(Kind.PROCESS, 0)


def killed_beside_lost_peer(left: Left) -> Diagnosis:
    left.rank(0, PEER)
    left.rank(1, host="w2", lost=Loss.PROCESS)
    left.launcher("w2: " + RETURN_CODE.format(-9))
    return left.diagnose(Kind.PROCESS, 1, host="w2")


def killed_and_its_peer_is_seen_first(left: Left) -> Diagnosis:
    """The launcher polls its processes in turn: of a peer that ended after it it tells instead."""
    left.rank(0, PEER)
    left.rank(1, lost=Loss.PROCESS)
    left.launcher(RETURN_CODE.format(1))
    return left.diagnose(Kind.PROCESS, 1, host="w1")


def killed_and_its_peer_has_a_word_first(left: Left) -> Diagnosis:
    """The loss of a connection may be seen after a peer's last word."""
    left.rank(0, PEER, ended=10.00, left=10.5)
    left.rank(1, host="w2", lost=Loss.PROCESS, ended=10.2, left=10.2)
    return left.diagnose(Kind.RANK, 0, noticed=10.02)


def killed_and_its_peer_is_gone_at_once(left: Left) -> Diagnosis:
    """Both ended between two polls of a supervisor that had to wait for a core."""
    left.rank(0, PEER, ended=10.0, left=12.0)
    left.rank(1, lost=Loss.PROCESS, ended=12.0, left=12.0)
    return left.diagnose(Kind.RANK, 0, noticed=12.0)


def ended_after_its_peer_was_cut_off(left: Left) -> Diagnosis:
    """Of a link that broke nobody died: DeepSpeed's launcher ended the other."""
    left.rank(0, PEER, ended=10.0, left=10.3)
    left.rank(1, lost=Loss.PROCESS, ended=10.5, left=10.5)
    return left.diagnose(Kind.RANK, 0, noticed=10.02)


def signal_on_another_host(left: Left) -> Diagnosis:
    """The ranks of another host did not get so far as to write anything."""
    left.rank(0, PEER)
    left.launcher("w2: " + RETURN_CODE.format(-9))
    return left.diagnose(Kind.RANK, 0)


def only_a_lost_peer(left: Left) -> Diagnosis:
    left.rank(0, PEER)
    return left.diagnose(Kind.RANK, 0)


def batch_system(left: Left) -> Diagnosis:
    left.rank(0, lost=Loss.PROCESS)
    left.launcher(
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have "
        "been OOM Killed.\nsrun: error: w1: task 0: Out Of Memory\n" + RETURN_CODE.format(-9)
    )
    return left.diagnose(Kind.PROCESS, 0)


def bus_error(left: Left) -> Diagnosis:
    left.rank(0, lost=Loss.PROCESS)
    left.launcher(RETURN_CODE.format(-7))
    return left.diagnose(Kind.PROCESS, 0)


def segmentation_fault(left: Left) -> Diagnosis:
    left.rank(0, lost=Loss.PROCESS)
    left.launcher(RETURN_CODE.format(-11))
    return left.diagnose(Kind.PROCESS, 0)


def native_words(left: Left) -> Diagnosis:
    words = (
        "[rank0]:[E321 02:07:08.4 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective "
        "operation timeout: WorkNCCL(SeqNum=1580) ran for 600060 milliseconds before timing out.\n"
    )
    left.rank(0, log=words, lost=Loss.PROCESS)
    left.launcher(RETURN_CODE.format(-6))
    return left.diagnose(Kind.PROCESS, 0)


def lost_process(left: Left) -> Diagnosis:
    left.rank(0, lost=Loss.PROCESS)
    return left.diagnose(Kind.PROCESS, 0, host="w1")


def lost_host(left: Left) -> Diagnosis:
    left.rank(0, PEER)
    left.rank(1, host="w2", lost=Loss.HOST)
    return left.diagnose(Kind.HOST, 1, host="w2")


def no_word(left: Left) -> Diagnosis:
    left.rank(0, lost=Loss.WORD, error="no word: b'null'")
    return left.diagnose(Kind.WORD, 0, host="w1", detail="no word: b'null'")


def stalled(left: Left) -> Diagnosis:
    left.rank(0)
    left.rank(1, host="w2")
    odd = Odd(rank=1, host="w2", difference=Difference.SILENT, seconds=60.0)
    return left.diagnose(
        Kind.STALL, 1, host="w2", seconds=61.0, phase="training", odd=odd, statuses=()
    )


def stalled_alone(left: Left) -> Diagnosis:
    left.rank(0)
    return left.diagnose(Kind.STALL, 0, host="w1", seconds=61.0, phase="training")


def all_alike(left: Left) -> Diagnosis:
    left.rank(0)
    left.rank(1)
    return left.diagnose(Kind.STALL, None, seconds=61.0, phase="training")


def never_came(left: Left) -> Diagnosis:
    left.rank(0)
    return left.diagnose(Kind.JOIN, 1, host="w2", seconds=300.0)


def never_came_and_the_launcher_says_why(left: Left) -> Diagnosis:
    left.rank(0)
    left.launcher("w2: bash: line 1: /opt/python: No such file or directory\n")
    return left.diagnose(Kind.JOIN, 1, host="w2", seconds=300.0)


def connection_refused(left: Left) -> Diagnosis:
    left.launcher(
        "w2: ssh: connect to host w2 port 22: Connection refused\n"
        "pdsh@w1: w2: ssh exited with exit code 255\n"
    )
    return left.diagnose(Kind.CONNECTION, None, host="w2", code=255)


def connection_ended(left: Left) -> Diagnosis:
    left.launcher("pdsh@w1: w2: ssh exited with exit code 1\n")
    return left.diagnose(Kind.CONNECTION, None, host="w2", code=1)


def launcher_killed(left: Left) -> Diagnosis:
    left.rank(0)
    return left.diagnose(Kind.LAUNCHER, None, code=-9)


def own_error(left: Left) -> Diagnosis:
    own = OwnError(message="there are no samples", where="data.train", hint="add documents")
    left.rank(0, "dslm.errors.DataError: there are no samples", own=own)
    return left.diagnose(Kind.RANK, 0)


def own_error_that_speaks_of_a_disk(left: Left) -> Diagnosis:
    """What dslm says of its own is not taken for what a library says."""
    own = OwnError(message="No space left on device is what the last run said")
    left.rank(0, "dslm.errors.DataError: " + own.message, own=own)
    return left.diagnose(Kind.RANK, 0)


def own_error_before_the_channel(left: Left) -> Diagnosis:
    left.launcher("w2: " + traceback("dslm.errors.RunFailed: w2 does not see the run directory"))
    left.rank(0, lost=Loss.PROCESS)
    left.run.rank_log(1, 0).unlink()
    with left.run.launcher_log(1).open("a") as log:
        log.write(RETURN_CODE.format(1) + "\n")
    return left.diagnose(Kind.PROCESS, 0)


def failed_without_a_word(left: Left) -> Diagnosis:
    """It ended by itself, so nobody killed it, for memory or otherwise."""
    left.rank(0, lost=Loss.PROCESS)
    left.launcher("ValueError: embedded null byte\n" + RETURN_CODE.format(1))
    return left.diagnose(Kind.PROCESS, 0)


def exit_code_of_a_script(left: Left) -> Diagnosis:
    left.rank(0, exit_code=3, ended=1.0)
    return left.diagnose(Kind.RANK, 0, code=3)


def exit_after_a_traceback(left: Left) -> Diagnosis:
    left.rank(0, exit_code=1, ended=1.0, log=traceback(DISK) + "giving up\n")
    return left.diagnose(Kind.RANK, 0, code=1)


# Name of the case: id of the cause, the rank that is blamed, the rule, where the cause was found.
CASES: Mapping[Callable[[Left], Diagnosis], tuple[str | None, int | None, str, str]] = {
    cause_beside_lost_peers: ("disk-full", 1, "own-words", "EXCEPTION"),
    unknown_beside_lost_peer: (None, 1, "own-words", ""),
    two_causes: ("host-memory", 1, "own-words", "EXCEPTION"),
    ended_by_the_launcher: ("label-bounds", 1, "own-words", "EXCEPTION"),
    killed_beside_lost_peer: ("killed", 1, "signal-seen", "SIGNAL"),
    killed_and_its_peer_has_a_word_first: ("killed", 1, "silent-seen", "SUPERVISOR"),
    killed_and_its_peer_is_gone_at_once: ("killed", 1, "silent-seen", "SUPERVISOR"),
    ended_after_its_peer_was_cut_off: ("peer-lost", 0, "follower", "EXCEPTION"),
    killed_and_its_peer_is_seen_first: ("killed", 1, "silent-seen", "SUPERVISOR"),
    signal_on_another_host: ("killed", None, "launcher-knows", "LAUNCHER"),
    only_a_lost_peer: ("peer-lost", 0, "follower", "EXCEPTION"),
    batch_system: ("slurm-memory", 0, "signal-seen", "BATCH"),
    bus_error: ("shared-memory", 0, "signal-seen", "SIGNAL"),
    segmentation_fault: ("crashed", 0, "signal-seen", "SIGNAL"),
    native_words: ("nccl-timeout", 0, "follower", "NATIVE"),
    lost_process: ("killed", 0, "silent-seen", "SUPERVISOR"),
    lost_host: ("host-lost", 1, "silent-seen", "SUPERVISOR"),
    no_word: ("malformed-word", 0, "silent-seen", "SUPERVISOR"),
    stalled: ("stalled", 1, "silent-seen", "SUPERVISOR"),
    stalled_alone: ("stalled-alone", 0, "silent-seen", "SUPERVISOR"),
    all_alike: ("stalled", None, "launcher-seen", "SUPERVISOR"),
    never_came: ("join-timeout", None, "launcher-seen", "SUPERVISOR"),
    never_came_and_the_launcher_says_why: (
        "remote-python", None, "launcher-seen", "LAUNCHER",
    ),
    connection_refused: ("ssh-refused", None, "launcher-seen", "LAUNCHER"),
    connection_ended: ("ssh-ended", None, "launcher-seen", "SUPERVISOR"),
    launcher_killed: (None, None, "launcher-seen", ""),
    own_error: ("bad-input", 0, "own-words", "OWN"),
    own_error_that_speaks_of_a_disk: ("bad-input", 0, "own-words", "OWN"),
    own_error_before_the_channel: ("bad-input", 0, "silent-seen", "OWN"),
    failed_without_a_word: (None, 0, "silent-seen", ""),
    exit_code_of_a_script: (None, 0, "own-words", ""),
    exit_after_a_traceback: ("disk-full", 0, "own-words", "LOG"),
}  # fmt: skip


def judged(folder: Path) -> dict[str, list[Any]]:
    """How each case is judged: all of it that is no sentence."""
    from dslm.diagnose.witness import Source

    found = {}
    for case in CASES:
        of = case(Left(folder / case.__name__))
        source = Source(of.source).name if of.source else ""
        found[case.__name__] = [
            of.id, of.rank, of.rule, source, of.host, of.retry, of.stage, list(of.followers),
        ]  # fmt: skip
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(judged(Path(sys.argv[1]))))
