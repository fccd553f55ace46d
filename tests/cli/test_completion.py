"""The shell completes presets, keys, values, devices, launchers and runs, from names alone."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from dslm.recipe.findings import known_keys
from tests.conftest import DSLM, Dslm

# what is typed, what is offered, what is not
TABLE = [
    ("dslm train quick", {"quickstart", "quickstart-sft"}, {"gpt2-124m"}),
    ("dslm train mi", {"mine.yaml", "mistral-7b"}, {"mine.txt"}),
    ("dslm plan sub/", {"sub/other.yaml"}, set()),
    ("dslm config qwen3", {"qwen3-8b"}, set()),
    ("dslm train quickstart --set batch.", {"batch.global_size=", "batch.micro_size="}, {"batch="}),
    ("dslm train quickstart -s prec", {"precision="}, set()),
    ("dslm train quickstart --launcher ", {"local", "pdsh", "openmpi", "slurm"}, set()),
    ("dslm plan quickstart --device h", {"h100-80gb"}, {"a100-80gb"}),
    ("dslm runs show ", {"one-run"}, {"no-run"}),
    ("dslm export ", {"one-run"}, {"no-run"}),
    ("dslm recipes list --task s", {"sft", "seq2seq"}, {"dpo"}),
    ("dslm recipes new mine.yaml --from gem", {"gemma-3-1b"}, set()),
    ("dslm recipes show quickstart -s parallel.offload = n", {"none", "nvme"}, {"all"}),
    ("dslm train quickstart --set parallel.zero_stage =", {"0", "1", "2", "3", "auto"}, set()),
    ("dslm train quickstart --set model.compile = ", {"true", "false"}, set()),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("mine.yaml", "mine.txt", "sub/other.yaml", "runs/one-run/manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "runs/no-run").mkdir()
    return tmp_path


@pytest.mark.parametrize(("typed", "offered", "not_offered"), TABLE, ids=[row[0] for row in TABLE])
def test_bash(
    dslm: Dslm, folder: Path, typed: str, offered: set[str], not_offered: set[str]
) -> None:
    words = typed.split(" ")
    asked = {"_DSLM_COMPLETE": "complete_bash", "COMP_WORDS": typed}
    done = dslm(**asked, COMP_CWORD=str(len(words) - 1))
    said = set(done.stdout.split())
    assert offered <= said, done.stderr
    assert not not_offered & said


def test_bash_itself_puts_no_space_behind_a_key(folder: Path) -> None:
    """A real bash at a terminal; the command is then a function that shows its words."""
    script = subprocess.run(
        [str(DSLM), "--show-completion", "bash"], capture_output=True, text=True, check=True
    )
    (folder / "complete.sh").write_text(script.stdout)
    lines = [
        "bind 'set enable-bracketed-paste off'; source complete.sh\n",
        "dslm() { printf '<%s>' \"$@\"; }\n",
        "dslm train quickstart --set batch.glo\t16 --launcher pd\tend\n",
        "exit\n",
    ]
    path = f"{DSLM.parent}:/usr/bin:/bin"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(
            "/bin/bash",
            ["bash", "--norc", "-i"],
            {"PATH": path, "HOME": str(folder), "PS1": "ready:"},
        )
    said = b""
    with suppress(OSError):  # the end of the terminal
        while part := os.read(terminal, 4096):
            said += part
            if said.endswith(b"ready:") and lines:  # typed ahead, a tab may meet no readline
                os.write(terminal, lines.pop(0).encode())
    os.waitpid(pid, 0)
    words = said.decode(errors="replace")
    assert "<--set><batch.global_size=16><--launcher><pdsh><end>" in words, words


def test_zsh_completes_values_behind_the_key(dslm: Dslm) -> None:
    asked = {"_DSLM_COMPLETE": "complete_zsh"}
    done = dslm(**asked, _TYPER_COMPLETE_ARGS="dslm train quickstart --set parallel.offload=n")
    assert '"parallel.offload=none"' in done.stdout
    assert "offload=all" not in done.stdout


def test_every_key_is_offered_and_can_be_set(dslm: Dslm) -> None:
    asked = {"_DSLM_COMPLETE": "complete_bash", "COMP_WORDS": "dslm train q --set "}
    said = set(dslm(**asked, COMP_CWORD="4").stdout.split())
    leaves = {
        f"{key}=" for key in known_keys() if not any(k.startswith(f"{key}.") for k in known_keys())
    }
    assert said == leaves


def test_completion_loads_nothing_heavy(folder: Path) -> None:
    heavy = ("torch", "transformers", "deepspeed", "numpy", "datasets")
    code = (
        "import os, sys; sys.argv = ['dslm']\n"
        "from dslm.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"sys.stderr.write(' '.join(m for m in {heavy} if m in sys.modules))"
    )
    for typed in ("dslm train ", "dslm train q --set ", "dslm plan q --device ", "dslm runs show "):
        asked = {"_DSLM_COMPLETE": "complete_bash", "COMP_WORDS": typed}
        words = {**asked, "COMP_CWORD": str(typed.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=words, capture_output=True, text=True
        )
        assert done.stdout
        assert not done.stderr
