"""Known wrong versions, installed for real: what `dslm verify` says of them on CPU ranks.

Each is installed into a virtual environment of its own, over the packages of this one; the entry of
the catalogue says that it is wrong, and the verification has to find it without knowing that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.verify import write_rows
from dslm.cluster.wrong_versions import wrong_versions
from dslm.run.directory import RunDirectory
from dslm.run.events import Error
from dslm.run.history import read_history
from tests.worker.planting import ALBERT
from tests.worker.test_verify import SMALL

_TIMEOUT = 400
_BF16 = {"precision": "bf16"}
_MANY = {"batch.global_size": 16, "batch.micro_size": 2}  # four micro batches


@dataclass(frozen=True, kw_only=True, slots=True)
class Wrong:
    """A version with a known mistake, and a recipe that meets it."""

    entry: str  # of the catalogue
    version: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "quickstart"
    beside: tuple[str, ...] = ()  # what that version needs in another version than is here


def _stage(number: int, **more: Any) -> dict[str, Any]:
    return {"parallel.zero_stage": number, **more}


WRONG = (
    Wrong(entry="zero2-gradients", version="0.18.2", settings={**_stage(2), **_BF16, **_MANY}),
    Wrong(
        entry="zero2-shared-modules", version="0.19.3", recipe="quickstart-mlm",
        settings={**_stage(2), **_BF16, **ALBERT},
    ),
    Wrong(entry="zero0-bf16", version="0.18.5", settings={**_stage(0), **_BF16, **_MANY}),
    Wrong(entry="zero2-ready-gradients", version="0.18.5", settings={**_stage(2), **_MANY}),
    Wrong(
        entry="offload-accumulation", version="0.18.9",
        settings={**_stage(2), **_MANY, "parallel.offload": "optimizer"},
    ),
    Wrong(
        entry="bf16-optimizer-last-micro-batch", version="0.18.9",
        settings={**_stage(1), **_BF16, **_MANY, "deepspeed.data_types.grad_accum_dtype": "fp32"},
    ),
    Wrong(
        entry="zero3-all-reduce-fetch", version="0.19.3",
        settings=_stage(
            3, **{"deepspeed.zero_optimization.stage3_use_all_reduce_for_fetch_params": "true"}
        ),
    ),
    Wrong(
        entry="accumulation-scale", version="5.4.0", settings={**_stage(2), **_MANY},
        beside=("tokenizers==0.22.2",),
    ),
)  # fmt: skip


def environment_of(packages: Sequence[str], folder: Path) -> Path:
    """Make a virtual environment with these over the packages that are here; its Python."""
    venv.create(folder, with_pip=False)
    inside = next((folder / "lib").glob("python*")) / "site-packages"
    here = sysconfig.get_path("purelib")
    (inside / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--no-build-isolation",
         "--target", str(inside), *packages],
        check=True, env={**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    return folder / "bin" / "python"


def verified(python: Path, wrong: Wrong, run: Path) -> tuple[int, dict[str, Any], str]:
    """Verify with the ranks of another environment: exit code, document, what was said."""
    argv = [str(python), "-m", "dslm", "verify", wrong.recipe, "--json", "-o", str(run)]
    settings = {**SMALL, "parallel.ranks": 2, **wrong.settings}
    argv += ["--steps", "2", *(w for k, v in settings.items() for w in ("-s", f"{k}={v}"))]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=_TIMEOUT,
        env={**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "250"},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def outcome(wrong: Wrong) -> str:
    """A row: the entry, the version, what the verification found."""
    entry = next(each for each in wrong_versions() if each.id == wrong.entry)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packages = (f"{entry.package}=={wrong.version}", *wrong.beside)
        python = environment_of(packages, folder / "venv")
        code, found, said = verified(python, wrong, folder / "run")
        error = read_history(RunDirectory(folder / "run")).last(Error)
    if code == 5:
        first = found["differences"][0]
        known = any(entry.source in text for text in found["known"])
        what = (
            f"found: {first['kind']} of `{first['name']}` and {found['found'] - 1} more; "
            f"{'named with its source' if known else 'not known by name'}"
        )
        what += f"; cause: {found['cause']}" if found["cause"] else ""
    else:
        why = error.said if error is not None else said.strip().rpartition("\n")[2]
        what = "shows nothing on CPU ranks" if code == 0 else f"doesn't run with the rest: {why}"
    return f"| `{wrong.entry}` | {entry.package} {wrong.version} | {what} |"


def report(names: list[str]) -> str:
    """Install and verify all, or those that are named; the page's table says what was found."""
    rows = {}
    for wrong in WRONG:
        if not names or wrong.entry in names:
            rows[f"`{wrong.entry}`"] = outcome(wrong)
            sys.stderr.write(rows[f"`{wrong.entry}`"] + "\n")
            order = [f"`{each.entry}`" for each in WRONG]
            write_rows("versions", rows, order, "verify-versions")
    return "\n".join(rows.values()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(report(sys.argv[1:]))
