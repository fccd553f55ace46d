"""Requests are what they were, and start ranks on real hosts without a shell reading anything."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dslm
from dslm.cluster.devices import cpu_device
from dslm.cluster.hosts import Cluster, Host
from dslm.errors import HostfileError, OptionError
from dslm.launch.sites import SITES, local, openmpi, pdsh
from dslm.launch.sites.slurm import launch as slurm
from dslm.launch.spec import LaunchRequest, LaunchSpec
from dslm.lifecycle.forward import forwarded
from dslm.run.attempt import path_of_word
from tests.cluster.namespaces import MakeHosts, wait_for
from tests.processes import command_line, slots_of
from tests.support.golden import GOLDEN, SameAs

TWO = (Host("w1", 2), Host("w2", 2))
SLOTS = {
    "pdsh.txt": {"w1": [0, 1], "w2": [0, 1]},
    "pdsh-chosen-slots.txt": {"w1": [0, 3], "w2": [0]},
    "pdsh-one-host.txt": {"me@w1": [0, 1, 2, 3]},
}
ODD = "a b'\"$HOME;`id`\n$(reboot)"
Request = Callable[..., LaunchRequest]


def spec(hosts: tuple[Host, ...] = TWO, **other: Any) -> LaunchSpec:
    given: dict[str, Any] = {
        "module": "dslm.worker.main",
        "cluster": Cluster(hosts=hosts, device=cpu_device(2**30)),
        "run": Path("/runs/mine"),
        "attempt": 1,
        "master_port": 29500,
        "master_address": "10.0.0.1",
        "interface": "eth0",
    }
    return LaunchSpec(**{**given, **other})


def whole(request: LaunchRequest) -> str:
    """Everything of a request: the command, the folder, the variables taken away, the files."""
    text = f"{request.render()}\n--- starts in {request.folder}\n"
    text += "".join(f"--- without {name}\n" for name in sorted(request.removed))
    text += "" if request.owns_parents else "--- its parents are not of this run\n"
    text += "".join(f"--- {file}\n{content}" for file, content in request.files.items())
    places = {sys.executable: "PYTHON", str(Path(sys.executable).parent): "BIN"}
    for place, word in {**places, str(Path(dslm.__file__).parent): "DSLM"}.items():
        text = text.replace(place, word)
    return text


def test_requests_are_what_they_were(same_as: SameAs) -> None:
    """Each file is one site's request; look at a changed one, then write it (--update-golden)."""
    inherited = {"PYTHONPATH": "/mine", "NCCL_DEBUG": "INFO", "HF_TOKEN": "secret"}
    requests = {
        "local.txt": local.request(spec((Host("localhost", 2),))),
        "pdsh.txt": pdsh.request(spec(), inherited),
        "pdsh-chosen-slots.txt": pdsh.request(spec((Host("w1", 2, (0, 3)), Host("w2", 1))), {}),
        "pdsh-one-host.txt": pdsh.request(
            spec((Host("me@w1", 4),)), {"PDSH_SSH_ARGS_APPEND": "-4"}
        ),
        "openmpi.txt": openmpi.request(spec(), inherited, root=False),
        "slurm.txt": slurm.request(spec(), inherited),
    }
    for name, request in requests.items():
        same_as(f"launch/{name}", whole(request))
        if name in SLOTS:
            assert slots_of(request.argv[-1].split()) == SLOTS[name]
    assert sorted(requests) == sorted(path.name for path in (GOLDEN / "launch").iterdir())


def test_no_rank_starts_where_a_folder_of_the_user_could_stand_for_a_library() -> None:
    one = spec((Host("localhost", 2),))
    assert local.request(one).whole_environment({})["PYTHONSAFEPATH"] == "1"
    for request_of in (pdsh.request, openmpi.request, slurm.request):
        assert request_of(one, {}).folder == Path("/")


@pytest.mark.parametrize("request_of", [openmpi.request, slurm.request])
def test_what_deepspeed_would_export_is_taken_away(request_of: Request) -> None:
    inherited = {
        "PATH": "/bin", "PYTHONPATH": ODD, "NCCL_DEBUG": ODD, "UCX_TLS": "x", "MV2_X": "x",
        "MLFLOW_TRACKING_TOKEN": "secret", "HF_TOKEN": "secret", "CUDA_VISIBLE_DEVICES": "0",
    }  # fmt: skip
    whole = request_of(spec(), inherited).whole_environment(inherited)
    assert whole["PATH"] == "/bin"
    assert not {"PYTHONPATH", "NCCL_DEBUG", "UCX_TLS", "MV2_X", "MLFLOW_TRACKING_TOKEN"} & {*whole}
    assert whole["DS_ENV_FILE"] == "/dev/null/none"


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_no_run_directory_reaches_a_shell(name: str) -> None:
    try:
        run = Path("/runs") / name
        request = pdsh.request(spec(run=run), {})
    except UnicodeEncodeError:
        return  # half a surrogate pair: no file has such a name
    word = shlex.split(request.argv[-1])[-3]
    assert shlex.quote(word) == word
    assert path_of_word(word) == run


def test_a_python_in_an_odd_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/home/me/my envs/bin/python")
    with pytest.raises(OptionError, match="shell"):
        pdsh.request(spec(), {})


REFUSED = [
    (openmpi.request, (Host("w1", 2, (0, 3)),), "slots 0, 3"),
    (openmpi.request, (Host("fe80::1", 2),), "IPv6"),
    (slurm.request, (Host("w1", 2, (1, 2)),), "slots 1, 2"),
    (slurm.request, (Host("w1", 2), Host("w2", 4)), "w1 2, w2 4"),
]


@pytest.mark.parametrize(("request_of", "hosts", "said"), REFUSED)
def test_what_a_launcher_cannot_do_is_said(
    request_of: Request, hosts: tuple[Host, ...], said: str
) -> None:
    with pytest.raises(HostfileError) as caught:
        request_of(spec(hosts), {})
    assert said in caught.value.message
    assert caught.value.hint


def test_variables_are_forwarded_by_an_allow_list() -> None:
    inherited = {
        "NCCL_IB_HCA": "mlx5", "GLOO_X": ODD, "UCX_TLS": "rc", "HF_HUB_OFFLINE": "1",
        "TORCH_LOGS": "x", "CUDA_LAUNCH_BLOCKING": "1", "OMP_NUM_THREADS": "4",
        "HF_TOKEN": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "PATH": "/bin", "HOME": "/root",
        "CUDA_VISIBLE_DEVICES": "0", "WANDB_API_KEY": "secret", "NCCL_PASSWORD": "secret",
    }  # fmt: skip
    found = forwarded(inherited, {"MINE": "1", "OMP_NUM_THREADS": "2"})
    assert found == {
        "NCCL_IB_HCA": "mlx5", "GLOO_X": ODD, "UCX_TLS": "rc", "HF_HUB_OFFLINE": "1",
        "TORCH_LOGS": "x", "CUDA_LAUNCH_BLOCKING": "1", "OMP_NUM_THREADS": "2", "MINE": "1",
    }  # fmt: skip


STARTED = [
    ("pdsh, two users", pdsh.request, ["root@w1", "w2"]),
    ("pdsh, IPv6", pdsh.request, ["[fd77::1]", "fd77::2"]),
    ("pdsh, one host", pdsh.request, ["w2"]),
    ("openmpi, two users", openmpi.request, ["root@w1", "w2"]),
    ("openmpi, one host", openmpi.request, ["w2"]),
]


@pytest.mark.hosts
@pytest.mark.slow
def test_ranks_start_on_every_host_and_nothing_reaches_a_shell(
    hosts: MakeHosts, tmp_path: Path
) -> None:
    """Every launcher, with an environment full of signs that mean something to a shell."""
    cluster = hosts(2)
    tempting = {
        "NCCL_DEBUG": "$(touch /tmp/dslm-was-here)", "PYTHONSTARTUP": "`touch /tmp/dslm-was-here`",
        "UCX_X": "a\"; touch /tmp/dslm-was-here; \"", "MLFLOW_TRACKING_TOKEN": "hunter2-mlflow",
        "HF_TOKEN": "hunter2-hub",
    }  # fmt: skip
    inherited = {**os.environ, **tempting}
    home = tmp_path / "a folder; touch /tmp/dslm-was-here"
    home.mkdir(parents=True)  # its name has a slash, so it is a folder in a folder
    (home / ".deepspeed_env").write_text("SECRET=hunter2-file\n")
    for title, request_of, names in STARTED:
        folder = tmp_path / f"{title}; {ODD[:20]}"
        (folder / "logs" / "attempt-1").mkdir(parents=True)
        given = tuple(Host(name, 2) for name in names)
        request = request_of(
            spec(
                given,
                module="tests.reach.payload",
                run=folder,
                master_address=cluster["w1"].address,
            ),
            inherited,
        )
        for file, text in request.files.items():
            file.write_text(text)
        (folder / "wait").touch()
        started = cluster.head.start(
            # the folder that DeepSpeed is given, not the one that dslm was started in
            ["env", "-C", str(request.folder), *request.argv],
            env={**request.whole_environment(inherited), "HOME": str(home)},
            stdout=(folder / "log").open("wb"),
            stderr=-2,
        )

        def log(folder: Path = folder) -> str:
            return (folder / "log").read_text()

        world = 2 * len(names)
        wait_for(lambda f=folder, n=world: len(list(f.glob("rank-*.json"))) == n)  # type: ignore[misc]
        lines = {tuple(command_line(process)) for process in cluster.processes()}
        assert any("tests.reach.payload" in line for line in lines)
        (folder / "wait").unlink()
        assert started.wait(120) == 0, log()
        ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world)]
        where = [cluster["w1"].name, cluster["w2"].name][2 - len(names) :]
        assert [rank["host"] for rank in ranks] == [name for name in where for _ in range(2)], title
        assert [rank["local_rank"] for rank in ranks] == [0, 1] * len(names)
        assert {rank["world_size"] for rank in ranks} == {world}
        assert not any("hunter2" in json.dumps(rank["environment"]) for rank in ranks), title
        assert "hunter2" not in log()
    assert not Path("/tmp/dslm-was-here").exists()


@given(st.text(st.characters(exclude_characters="\0"), min_size=1), st.integers(1, 9))
def test_no_host_reaches_a_shell_but_as_letters_and_numbers(name: str, slots: int) -> None:
    line = pdsh.request(spec((Host(name, slots), Host("w2", slots, (3,)))), {}).argv[-1]
    folder, _, command = line.partition("; ")
    assert folder == "cd /"
    assert re.fullmatch(r"[A-Za-z0-9_@%+=:,./ -]+", command)


def test_every_site_is_a_row_that_the_options_read() -> None:
    from dslm.cli import options
    from dslm.launch.sites import queue_of

    launcher = typing.get_args(options.Launcher)[1]
    assert launcher.metavar == "|".join(SITES)
    assert [name for name, site in SITES.items() if site.queue] == [options.QUEUE]
    assert queue_of(options.QUEUE) is SITES[options.QUEUE].queue
    with pytest.raises(OptionError, match="no queue"):
        queue_of("pdsh")


def test_slurm_is_named_in_its_own_module_only() -> None:
    """Elsewhere in help and examples, and in the catalogue of what Slurm itself prints."""
    root = Path(dslm.__file__).parent
    named = {
        str(file.relative_to(root))
        for file in root.rglob("*")
        if file.suffix in (".py", ".yaml")
        and re.search(r"slurm|\bsrun|sbatch", file.read_text(), re.IGNORECASE)
    }
    own = {name for name in named if name.startswith("launch/sites/slurm/")}
    assert len(own) == 4
    assert named - own == {
        "launch/sites/__init__.py",  # its row
        "reading.py",  # the source of a limit
        "cli/options.py",  # its option
        "cli/train.py",  # an example in the help
        "diagnose/catalogue.py",
        "diagnose/failures.yaml",
    }
