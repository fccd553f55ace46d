"""A run's files reach hosts that don't share its folder, and their logs come back."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

from dslm.errors import PreflightError
from dslm.reach.copies import fetch, put, send
from tests.cluster.namespaces import MakeHosts

ODD = "a folder'\"; $HOME `id`"


def test_files_cannot_leave_their_folder(tmp_path: Path) -> None:
    content: dict[str, str | int] = {"content": base64.b64encode(b"x").decode(), "mode": 0o600}
    for name in ("../out", "/etc/out", "a/../../out", ""):
        with pytest.raises(ValueError, match="leads out"):
            put(tmp_path, {name: content})


def test_a_folder_of_this_machine_is_read_back(tmp_path: Path) -> None:
    run = tmp_path / ODD
    (run / "logs").mkdir(parents=True)
    (run / "secret").write_text("token")
    (run / "secret").chmod(0o600)
    send(["localhost"], run, ["secret"])
    assert (run / "secret").read_text() == "token"
    assert (run / "secret").stat().st_mode & 0o777 == 0o600
    (run / "logs" / "rank-1.log").write_text("hello")
    assert fetch(["localhost"], run, "logs") == []
    assert fetch(["localhost"], run, "gone") == []


@pytest.mark.hosts
def test_hosts_without_the_folder_get_copies_and_give_logs(
    hosts: MakeHosts, tmp_path: Path
) -> None:
    cluster = hosts(2)
    shared = tmp_path / "shared"
    run = shared / ODD
    (run / "logs").mkdir(parents=True)
    (run / "recipe.yaml").write_text("task: pretrain\n")
    (run / "logs" / "attempt.json").write_text("{}")
    for host in cluster.hosts:
        host.hide(shared)
    program = (
        "import json, sys\nfrom pathlib import Path\n"
        "from dslm.reach.copies import fetch, send\n"
        "run = Path(sys.argv[1])\n"
        "send(['w1', 'w2'], run, ['recipe.yaml', 'logs/attempt.json'])\n"
    )
    done = cluster.head.run([sys.executable, "-c", program, run])
    assert done.returncode == 0, done.stderr
    for host in cluster.hosts:
        assert host.run(["cat", run / "recipe.yaml"]).stdout == "task: pretrain\n"
        host.run(["tee", run / "logs" / f"{host.name}.log"], input="x" * 3_000_000 + host.name)
    back = "print(json.dumps([str(f) for f in fetch(['w1', 'w2'], run, 'logs')]))\n"
    program = program.replace("send(['w1'", "0 and send(['w1'") + back
    done = cluster.head.run([sys.executable, "-c", program, run])
    assert len(json.loads(done.stdout)) == 2
    assert (run / "logs" / "w2.log").read_text().endswith("xw2")
    assert (run / "logs" / "w2.log").stat().st_size == 2 * 2**20
    assert (run / "logs" / "attempt.json").read_text() == "{}"


def test_what_cannot_be_copied_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("x")
    (run / "recipe.yaml").rename(run / "recipe")
    with pytest.raises(PreflightError, match="can't be copied to nowhere-at-all"):
        send(["nowhere-at-all"], run, ["recipe"])
