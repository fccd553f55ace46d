"""Checks of whether this machine can train: versions, compiler, devices, memory, disk, limits.

Imports none of what it checks: a broken torch must not break its own diagnosis.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dslm.cluster.detect import local_cluster, this_machine
from dslm.cluster.measured import measured_file
from dslm.cluster.wrong_versions import installed_wrong, settings_of, wrong_versions
from dslm.units import number_of, render_bytes

_NEEDED = ("torch", "deepspeed", "transformers", "accelerate", "datasets", "tokenizers")
_OPTIONAL = {
    "peft": "LoRA: pip install 'dslm[lora]'",
    "trl": "the tasks sft, dpo, orpo, kto, reward and grpo: pip install 'dslm[trl]'",
    "liger-kernel": "faster kernels on CUDA: pip install liger-kernel",
    "flash-attn": "faster attention on CUDA: pip install flash-attn",
}
# versions of transformers with which each DeepSpeed has been seen to share experts between ranks
_SHARES_EXPERTS = {"0.19.8": ("5.20.2", "5.22.2", "5.23.0")}
_PYTHON = (3, 11)
_FREE_DISK = 5 * 2**30
_FREE_SHM = 2**30  # DeepSpeed shares 66 MiB a rank there, NCCL and data loaders more
_OPEN_FILES = 4096


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `state` is ok, missing (but not needed) or wrong."""

    name: str
    value: str
    state: str = "ok"
    fix: str = ""


def check_machine() -> list[Check]:
    """Everything that training on this machine needs."""
    return [
        _python(),
        *(_package(name) for name in _NEEDED),
        *(_package(name, use) for name, use in _OPTIONAL.items()),
        _sharing_of_experts(),
        _program("g++", "DeepSpeed builds its CPU operators with it: apt install g++"),
        _program("ninja", "DeepSpeed builds its operators with it: pip install ninja"),
        _program("deepspeed", "it comes with the package deepspeed: is its bin folder there?"),
        _devices(),
        _memory(),
        _space("disk here", Path.cwd(), _FREE_DISK, "checkpoints and models need it"),
        _space("/dev/shm", Path("/dev/shm"), _FREE_SHM, "docker: run with --shm-size=8g"),  # noqa: S108
        _open_files(),
        _measured(),
        *_known_wrong(),
    ]


def _python() -> Check:
    good = sys.version_info >= _PYTHON
    fix = f"dslm needs Python {'.'.join(map(str, _PYTHON))} or newer"
    return Check(
        "Python", platform.python_version(), "ok" if good else "wrong", "" if good else fix
    )


def _package(name: str, use: str = "") -> Check:
    try:
        return Check(name, version(name))
    except PackageNotFoundError:
        if use:
            return Check(name, "not installed", "missing", use)
        return Check(name, "not installed", "wrong", "pip install dslm brings it")


def _sharing_of_experts() -> Check:
    """Whether DeepSpeed and transformers go together where `parallel.expert` is above 1."""
    name = "shared experts"
    try:
        deepspeed, transformers = version("deepspeed"), version("transformers")
    except PackageNotFoundError:
        return Check(name, "not known", "missing", "the packages above are needed first")
    seen = _SHARES_EXPERTS.get(deepspeed.partition("+")[0], ())
    pair = f"DeepSpeed {deepspeed}, transformers {transformers}"
    if transformers in seen:
        return Check(name, pair)
    known = "; ".join(
        f"DeepSpeed {d} with transformers {', '.join(t)}" for d, t in _SHARES_EXPERTS.items()
    )
    return Check(
        name, pair, "missing", f"`parallel.expert` is not known to work here, but with {known}"
    )


def _program(name: str, use: str) -> Check:
    # a virtual environment's programs lie beside its Python, whether it is activated or not
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    return Check(name, found) if found else Check(name, "not found", "wrong", use)


def _devices() -> Check:
    machine = this_machine()
    if not machine.accelerators:
        return Check(
            "accelerators",
            f"none; {number_of(machine.cores, 'CPU core')}",
            "missing",
            "CPU is used",
        )
    names = ", ".join(device.name for device in machine.accelerators)
    visible = len(machine.visible)
    if not visible:
        return Check(
            "accelerators", names, "wrong", "CUDA_VISIBLE_DEVICES hides them all: unset it"
        )
    return Check("accelerators", f"{names}; {visible} visible")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{render_bytes(memory.available)} free of {render_bytes(memory.total)}"
    return Check("memory", text)


def _space(name: str, path: Path, wanted: int, use: str) -> Check:
    try:
        free = shutil.disk_usage(path).free
    except OSError as failure:
        return Check(name, f"can't be looked at: {failure.strerror}", "wrong", use)
    text = f"{render_bytes(free)} free"
    if free >= wanted:
        return Check(name, text)
    return Check(name, text, "wrong", f"less than {render_bytes(wanted)}: {use}")


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= _OPEN_FILES or soft == resource.RLIM_INFINITY:
        return Check("open files", str(soft))
    fix = f"`ulimit -n {min(hard, 65536)}`: many ranks and data files need more"
    return Check("open files", str(soft), "missing", fix)


def _measured() -> Check:
    device = local_cluster().device
    if device.measured:
        return Check("speed", f"{device.measured} ({measured_file()})")
    return Check("speed", f"{device.source}", "missing", "`dslm doctor --measure` measures it")


def _known_wrong() -> list[Check]:
    """What installed versions are known to learn wrongly, in some settings."""
    found = [
        Check(
            f"{entry.package} {release}",
            f"{entry.wrong} ({settings_of(entry)}); {entry.source}",
            "missing",
            entry.way_out,
        )
        for entry, release in installed_wrong()
    ]
    return found or [Check("wrong versions", f"none of {len(wrong_versions())} known")]
