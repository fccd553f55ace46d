"""The wheel carries the presets: installed into an empty environment, it lists them anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# what a light verb needs; the heavy dependencies are the same in every environment
LIGHT = ("typer", "rich", "pydantic", "pyyaml", "psutil", "nvidia-ml-py")


@pytest.mark.slow
def test_an_installed_wheel_lists_the_presets_from_another_folder(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("dslm-*.whl")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    inside = [str(environment / "bin" / "python"), "-m", "pip", "--quiet"]
    constraints = str(ROOT / "constraints.txt")
    subprocess.run([*inside, "install", "-c", constraints, *LIGHT], check=True)
    subprocess.run([*inside, "install", "--no-deps", str(wheel)], check=True)
    dslm = str(environment / "bin" / "dslm")

    def ask(*argv: str) -> str:
        done = subprocess.run([dslm, *argv], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert len(json.loads(ask("recipes", "list", "--json"))) >= 31
    assert json.loads(ask("config", "llama-3.2-1b"))["train_batch_size"] == 256
    package = next((environment / "lib").glob("*/site-packages/dslm"))
    assert (package / "_shipped/hostfiles/two-nodes").is_file()
    assert (package / "py.typed").is_file()
