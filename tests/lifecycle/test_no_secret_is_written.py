"""Whatever a run is started with, no file of it holds a secret; nothing is trained here."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm.cluster.hosts import Host
from dslm.errors import InputError
from dslm.lifecycle.folder import make_run
from dslm.lifecycle.forward import forwarded
from dslm.recipe.load import load_recipe
from dslm.secrets import sounds_secret
from tests.conftest import Dslm
from tests.test_secrets import NAMED, SHAPES


def test_the_manifest_holds_none_of_the_command_line(tmp_path: Path) -> None:
    words = [word for shape in SHAPES for word in ("--note", shape, f"--note={shape}")]
    names = [name.strip("-") for name, _ in NAMED if sounds_secret(name)]
    words += [word for name in names for word in ("--set", f"environment.{name}=hunter2")]
    run = make_run(tmp_path / "run", "r", {}, ["dslm", "launch", "--token", "hunter2", *words],
                   [Host("localhost", 1)])  # fmt: skip
    written = "".join(file.read_text() for file in run.path.rglob("*") if file.is_file())
    assert "--note" in written
    assert [secret for secret in ("hunter2", *SHAPES) if secret.splitlines()[0] in written] == []


@pytest.mark.parametrize("secret", SHAPES)
@pytest.mark.parametrize(
    "key",
    ["description", "model.revision", "training_args.run_name", "deepspeed.a.b", "environment.A"],
)
def test_no_recipe_with_a_secret_is_loaded(key: str, secret: str) -> None:
    quoted = secret.replace("\n", "\\n")
    with pytest.raises(InputError) as caught:
        load_recipe("quickstart", [f'{key}="{quoted}"'])
    assert str(caught.value.where) == f"--set {key}"
    assert secret not in f"{caught.value}{caught.value.hint}"


def test_no_secret_travels_to_other_hosts() -> None:
    given = {"HF_HOME": "/x", "HF_TOKEN": "abc", "NCCL_NOTE": SHAPES[0], "HF_HUB_OFFLINE": "1"}
    assert forwarded(given, {}) == {"HF_HOME": "/x", "HF_HUB_OFFLINE": "1"}


def test_a_refused_secret_leaves_nothing_behind(dslm: Dslm, tmp_path: Path) -> None:
    (tmp_path / "s.py").touch()
    for arguments in (
        ["train", "quickstart", "-s", "training_args.hub_token=hunter2"],
        ["train", "quickstart", "--slurm", "--num-gpus", "1", "-s", "environment.A_TOKEN=hunter2"],
        ["launch", "s.py", "--", f"--key={SHAPES[3]}"],
    ):
        done = dslm(*arguments)
        assert done.returncode == 2, done.stderr
        assert "hunter2" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s.py"]
