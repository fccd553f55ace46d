"""Whatever bytes lie in a run directory: its readers read the rest, or refuse in one sentence."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dslm.ask.export import export_request
from dslm.cli.screens.failure import panel
from dslm.cli.screens.runs import RunsTable, run_page
from dslm.errors import DslmError
from dslm.lifecycle.resumable import run_in
from dslm.run.checkpoints import complete_checkpoints, newest_sound
from dslm.run.directory import RunDirectory
from dslm.run.history import read_history
from dslm.run.lock import owner_of
from dslm.run.summary import find_runs, open_run, summary_of

FROZEN = Path(__file__).parents[1] / "data" / "run-0.1"
FILES = sorted(
    str(path.relative_to(FROZEN / "stopped"))
    for path in (FROZEN / "stopped").rglob("*")
    if path.suffix in (".json", ".jsonl", ".yaml") or path.name == "latest"
)
NUMBERS = [b"-1", b"true", b"null", b"1e999", b"9" * 400, b'"x"', b"[]", b"{}", b"NaN", b"1e300"]

changes = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 10**6), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 10**6), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 10**6), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("nul"), st.integers(0, 10**6), st.integers(1, 300)),
    st.tuples(st.just("value"), st.integers(0, 10**6), st.sampled_from(NUMBERS)),
    st.tuples(st.just("whole"), st.just(0), st.binary(max_size=60)),
)


def changed(content: bytes, what: str, place: int, how: int | bytes) -> bytes:
    """A file's content with one thing done to it."""
    at = place % (len(content) + 1)
    if isinstance(how, bytes):
        if what == "whole":
            return how
        if what == "insert":
            return content[:at] + how + content[at:]
        colon = content.find(b": ", at)
        end = min(
            (p for p in (content.find(e, colon) for e in (b",", b"\n", b"}")) if p > 0), default=0
        )
        return content[: colon + 2] + how + content[end:] if 0 <= colon < end else how
    if what == "cut":
        return content[:at]
    if what == "nul":
        return content[:at] + b"\0" * how + content[at + how :]
    return (
        content[:at] + bytes([content[at] ^ how]) + content[at + 1 :] if at < len(content) else b""
    )


def read_everything(path: Path) -> str:
    """Ask a run directory all that verbs ask of it; what is shown of it."""
    screen = Console(file=io.StringIO(), width=100)
    run = RunDirectory(path)
    history = read_history(run)
    summary = summary_of(history)
    summary.document()
    screen.print(RunsTable([summary], path.parent))
    for part in run_page(history, summary, plain=False):
        screen.print(part)
    if summary.failure is not None:
        screen.print(panel(summary.failure, path))
    owner_of(path)
    find_runs(path.parent)
    complete_checkpoints(run.checkpoints)
    newest_sound(run.checkpoints)
    for ask in (
        lambda: open_run(path),
        lambda: run_in(path),
        lambda: export_request(
            path,
            step=None,
            merge=False,
            dtype=None,
            output=path / "out",
            push_to_hub=None,
            trust=False,
        ),
    ):
        try:
            ask()
        except DslmError as refused:
            assert refused.message
            assert "Traceback" not in refused.message
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_change_of_bytes_breaks_a_reader(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shutil.copytree(FROZEN / "stopped", run)
        for _ in range(data.draw(st.integers(1, 3))):
            file = run / data.draw(st.sampled_from(FILES))
            what, place, how = data.draw(changes)
            file.write_bytes(changed(file.read_bytes(), what, place, how))
        assert "status" in read_everything(run)


def test_folders_where_files_should_be_and_strangers_among_the_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FROZEN / "stopped", run)
    assert "stopped" in read_everything(run)
    (run / "events.jsonl").unlink()
    (run / "events.jsonl").mkdir()
    for name in ("step-foo", "step-", "step--1", "step-1e3", "step-07", "step-" + "9" * 40):
        (run / "checkpoints" / name).mkdir()
    (run / "checkpoints" / "step-8").write_text("a file")
    (run / "checkpoints" / "step-9").symlink_to("nowhere")
    assert "could not be read: events.jsonl" in read_everything(run)
    checkpoint, problems = newest_sound(run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 56
    assert not problems
