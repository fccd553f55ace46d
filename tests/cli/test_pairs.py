"""No option is silently without effect, alone or beside any other.

Every verb is run with every pair of its options: each of the two must change what comes out, or the
pair is refused, or the reason why it can't be seen stands in a table here. What a verb would ask of
a worker or of other hosts is recorded instead of done, and is part of what comes out.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import typer

from dslm.ask.profile import profile_of
from dslm.cli.app import app
from dslm.cluster.measurement import LinkMeasurement, Measurement
from dslm.decide.measure import Measured
from dslm.errors import DslmError
from dslm.lifecycle.verifying import Verification
from dslm.reach.preflight import Preflight
from dslm.recipe.load import load_recipe
from dslm.run.directory import RunDirectory
from dslm.run.events import Verified

COMMANDS = typer.main.get_command(app)  # as each call of `app` would make it again
PORT = "29777"
HOSTS = "localhost:2,w2:2,w3:2"
_PLACED = {
    "--hostfile": [HOSTS],
    "--num-nodes": ["1"],
    "--num-gpus": ["4"],
    "--include": ["localhost:0"],
    "--exclude": ["localhost:1"],
    "--launcher": ["openmpi"],
    "--no-preflight": [],
    "--master-port": [PORT],
    "--output": ["out"],
    "--force": [],
}
_PART = {"documents": 1, "duplicates": 0, "samples": 1, "tokens": 1, "shards": []}
# What a worker would answer.
PREPARED = {
    "train": _PART, "eval": _PART, "labels": [], "bad_records": 0, "examples": [], "folder": "data",
    "damaged": [], "shown": [], "formats": {}, "with_tools": 0, "cut": 0,
}  # fmt: skip
MEASURED = Measured(
    device="cpu",
    speeds={},
    missed={},
    found=Measurement(
        products=(), passes=(), memory_bandwidth=1e9, host_adam=1e8, disk_write=1e9, disk_read=1e9,
        ranks=1, date="2026-11-25",
    ),
)  # fmt: skip
_ON_HOSTS = {
    "--set": ["optimizer.lr=1.0e-3"],
    "--num-nodes": ["1"],
    "--num-gpus": ["1"],
    "--include": ["w2@w3:0"],
    "--exclude": ["localhost:0"],
    "--launcher": ["openmpi"],
    "--no-preflight": [],
    "--master-port": [PORT],
    "--output": ["out"],
}
_LAUNCH = ("launch", "script.py", "--recipe", "quickstart")
_ALIKE = "the slots of a CPU are all alike; on hosts it is walked below"
_UNSEEN_FORCE = "speaks only where a plan does not fit"


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A verb, the words it is always given, a value for each of its options, and what is unseen."""

    verb: str
    base: tuple[str, ...]
    options: dict[str, list[str]]
    unseen: dict[str, str] = field(default_factory=dict)  # option: why nothing shows its effect
    given: tuple[str, ...] = ()  # options that `base` holds
    same: dict[frozenset[str], str] = field(default_factory=dict)  # pair: why one adds nothing


WALKS = (
    Walk(
        verb="train",
        base=("train", "quickstart", "--dry-run", "--json"),
        given=("--dry-run", "--json", "RECIPE"),
        options={
            "--set": ["optimizer.lr=1.0e-3"],
            "--model": ["gpt2"],
            "--with": ["continue"],
            **_PLACED,
            "--slurm": [],
            "--max-restarts": ["2"],
            "--min-nodes": ["2"],
            "--resume": [],
            "--trust-checkpoint": [],
            "--verify": [],
            "--weights-only": ["runs/none"],
        },
        unseen={
            "--force": _UNSEEN_FORCE,
            "--exclude": _ALIKE,
        },
    ),
    Walk(
        verb="launch",
        base=("launch", "script.py", "--dry-run", "--json"),
        given=("--dry-run", "--json", "SCRIPT"),
        options={
            "--set": ["optimizer.lr=1.0e-3"],
            "--with": ["continue"],
            **_PLACED,
            "--recipe": ["quickstart"],
            "--pass-config": [],
        },
        unseen={
            "--force": _UNSEEN_FORCE,
            "--include": _ALIKE,
            "--exclude": _ALIKE,
        },
    ),
    Walk(
        verb="train",
        base=("train", "quickstart", "--hostfile", HOSTS, "--dry-run", "--json"),
        given=("RECIPE", "--hostfile", "--dry-run", "--json"),
        options={**_ON_HOSTS, "--max-restarts": ["2"], "--min-nodes": ["2"]},
    ),
    Walk(
        verb="launch",
        base=(*_LAUNCH, "--hostfile", HOSTS, "--dry-run", "--json"),
        given=("SCRIPT", "--recipe", "--hostfile", "--dry-run", "--json"),
        options={**_ON_HOSTS, "--pass-config": []},
    ),
    Walk(
        verb="plan",
        base=("plan", "quickstart", "--json"),
        given=("RECIPE", "--json"),
        options={
            "--set": ["model.activation_checkpointing=true"],
            "--model": ["gpt2"],
            "--with": ["long-context"],
            "--gpus": ["8"],
            "--hosts": ["2"],
            "--device": ["a100-80gb"],
            "--hostfile": [HOSTS],
            "--params": ["7B"],
            "--zero": ["1"],
            "--sweep": [],
            "--longest": [],
            "--largest": [],
            "--explain": [],
            "--price": ["2.5"],
        },
        unseen={"--explain": "the JSON has every term of memory anyway"},
        same={
            frozenset((cluster, "--longest")): "on each of these it is the model's longest"
            for cluster in ("--gpus", "--hosts", "--device", "--hostfile")
        },
    ),
    Walk(
        verb="plan",
        base=("plan", "--params", "7B", "--json"),
        given=("--params", "--json"),
        options={
            "RECIPE": ["quickstart"],
            "--set": ["model.activation_checkpointing=true"],
            "--model": ["gpt2"],
            "--with": ["continue"],
            "--gpus": ["2"],
            "--hosts": ["2"],
            "--device": ["a100-80gb"],
            "--hostfile": [HOSTS],
            "--zero": ["1"],
            "--sweep": [],
            "--longest": [],
            "--largest": [],
            "--explain": [],
            "--price": ["2.5"],
        },
    ),
    Walk(
        verb="plan",
        base=("plan", "quickstart"),
        given=("RECIPE",),
        options={
            "--json": [],
            "--sweep": [],
            "--longest": [],
            "--largest": [],
            "--explain": [],
            "--price": ["2.5"],
        },
        same={frozenset(("--json", "--explain")): "the JSON has every term of memory anyway"},
    ),
    Walk(
        verb="config",
        base=("config", "quickstart"),
        given=("RECIPE",),
        options={
            "--set": ["optimizer.lr=1.0e-3"],
            "--model": ["gpt2"],
            "--with": ["continue"],
            "--num-gpus": ["4"],
            "--device": ["a100-80gb"],
            "--explain": [],
            "--check": ["ds.json"],
            "--json": [],
        },
        unseen={"--json": "a config is JSON already; with --explain and --check it changes much"},
    ),
    Walk(
        verb="config",
        base=("config", "--check", "ds.json"),
        given=("--check",),
        options={
            "RECIPE": ["quickstart"],
            "--set": ["optimizer.lr=1.0e-3"],
            "--model": ["gpt2"],
            "--with": ["continue"],
            "--num-gpus": ["4"],
            "--device": ["a100-80gb"],
            "--explain": [],
            "--json": [],
        },
    ),
    Walk(
        verb="recipes list",
        base=("recipes", "list"),
        options={"WORDS": ["quickstart"], "--task": ["mlm"], "--json": []},
    ),
    Walk(
        verb="recipes show",
        base=("recipes", "show", "quickstart"),
        given=("RECIPE",),
        options={
            "--set": ["optimizer.lr=1.0e-3"],
            "--model": ["gpt2"],
            "--with": ["continue"],
            "--json": [],
        },
    ),
    Walk(
        verb="recipes new",
        base=("recipes", "new", "mine.yaml"),
        given=("PATH",),
        options={"--from": ["llama-3.2-1b"], "--model": ["gpt2"], "--with": ["continue"]},
    ),
    Walk(verb="recipes schema", base=("recipes", "schema"), options={}),
    Walk(
        verb="data prepare",
        base=("data", "prepare", "quickstart"),
        given=("RECIPE",),
        options={
            "--set": ["optimizer.lr=1.0e-3"],
            "--model": ["gpt2"],
            "--with": ["continue"],
            "--shards": ["2"],
            "--shard-by": ["hash"],
            "--json": [],
        },
    ),
    Walk(
        verb="data show",
        base=("data", "show", "quickstart"),
        given=("RECIPE",),
        options={
            "--set": ["optimizer.lr=1.0e-3"],
            "--model": ["gpt2"],
            "--with": ["continue"],
            "--samples": ["1"],
            "--json": [],
        },
    ),
    Walk(
        verb="tune",
        base=("tune", "quickstart"),
        given=("RECIPE",),
        options={
            "--set": ["optimizer.lr=1.0e-3"],
            "--with": ["continue"],
            **{k: v for k, v in _PLACED.items() if k not in ("--force", "--master-port")},
            "--trials": ["3"],
            "--steps": ["3"],
            "--minutes": ["5"],
            "--over": ["optimizer.lr=1.0e-3,2.0e-3"],
            "--output": ["out"],
            "--json": [],
        },
        unseen={"--include": _ALIKE, "--exclude": _ALIKE},
    ),
    Walk(
        verb="verify",
        base=("verify", "quickstart"),
        given=("RECIPE",),
        options={
            "--set": ["optimizer.lr=1.0e-3"],
            "--with": ["continue"],
            **{k: v for k, v in _PLACED.items() if k != "--force"},
            "--steps": ["2"],
            "--against": ["quickstart-mlm"],
            "--json": [],
        },
        unseen={"--include": _ALIKE, "--exclude": _ALIKE},
    ),
    Walk(
        verb="doctor",
        base=("doctor",),
        options={"--hostfile": [HOSTS], "--measure": [], "--json": []},
    ),
    Walk(
        verb="hosts show",
        base=("hosts", "show", HOSTS),
        given=("HOSTFILE",),
        options={"--include": ["localhost:0"], "--exclude": ["w2"], "--json": []},
    ),
    Walk(
        verb="hosts check",
        base=("hosts", "check", HOSTS),
        given=("HOSTFILE",),
        options={
            "--include": ["localhost:0"],
            "--exclude": ["w2"],
            "--output": ["out"],
            "--master-port": [PORT],
            "--json": [],
        },
    ),
)
# Verbs of a run, which is not made here: what their options do is tested where they are.
ELSEWHERE = (
    "chat",
    "evaluate",
    "export",
    "generate",
    "runs list",
    "runs show",
    "runs watch",
    "runs stop",
)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], tuple[bool, str]]:
    """Run a command line: whether it is refused, and what comes out of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    asked: list[str] = []

    def ask(module: str, request: Any, tell: Any = None) -> Any:
        asked.append(json.dumps([module, request], default=str, sort_keys=True))
        return PREPARED

    def tune(tuning: Any, on_trial: Any, tell: Any) -> list[Any]:
        asked.append(repr(replace(tuning, request=replace(tuning.request, command=()))))
        return []

    def search(tuning: Any, over: Any, on_trial: Any, tell: Any) -> list[Any]:
        tune(tuning, on_trial, tell)
        asked.append(repr(over))
        return []

    def verify(request: Any, listener: Any, steps: int, like: Any = None) -> Verification:
        asked.append(repr((replace(request, command=()), steps)))
        return Verification(
            run=RunDirectory(tmp_path),
            recipe=request.recipe.recipe,
            found=Verified(time=0.0, attempt=1, same=True),
        )

    recipe = load_recipe("quickstart").recipe
    profile, _ = profile_of(recipe, recipe.model.architecture, on_cpu=True)

    def profiles(requests: list[Any], tell: Any) -> list[Any]:
        asked.append(json.dumps(requests, default=str, sort_keys=True))
        return [profile] * len(requests)

    def preflight(hosts: Any, requirements: Any) -> Preflight:
        asked.append(repr((list(hosts), requirements.run, requirements.port)))
        return Preflight(results=(), master_address=None)

    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    monkeypatch.setattr("dslm.ask.call.ask", ask)
    monkeypatch.setattr("dslm.decide.measure.measure_here", lambda tell: MEASURED)
    monkeypatch.setattr("dslm.lifecycle.links.measure_links", lambda fleet, tell: LinkMeasurement())
    monkeypatch.setattr("dslm.reach.doctor.check_machine", list)
    monkeypatch.setattr("dslm.decide.longest.profiles", profiles)
    monkeypatch.setattr("dslm.lifecycle.tuning.tune", tune)
    monkeypatch.setattr("dslm.lifecycle.values.search", search)
    monkeypatch.setattr("dslm.lifecycle.verifying.verify", verify)
    monkeypatch.setattr("dslm.reach.preflight.preflight", preflight)
    (tmp_path / "script.py").write_text("HfArgumentParser\n")
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}
    (tmp_path / "ds.json").write_text(json.dumps(config))

    def outcome(argv: list[str]) -> tuple[bool, str]:
        asked.clear()
        (tmp_path / "mine.yaml").unlink(missing_ok=True)
        refused, how = False, ""
        try:
            COMMANDS(argv, standalone_mode=False)
        except DslmError as failure:
            refused, how = failure.exit_code == 2, f"{failure.exit_code} {failure.message}"
        except typer.Exit as end:
            how = str(end.exit_code)
        except Exception as failure:  # the parser's own refusals are no public class
            if "UsageError" not in [kind.__name__ for kind in type(failure).__mro__]:
                raise
            refused, how = True, str(failure)
        said = capsys.readouterr().out
        made = tmp_path / "mine.yaml"
        text = "\n".join([how, said, *asked, made.read_text() if made.exists() else ""])
        text = re.sub(r"-\d{8}-\d{6}(-\d+)?", "-TIME", text)
        return refused, re.sub(rf"\b(?!{PORT})\d{{5}}\b", "PORT", text)

    return outcome


def _words(name: str, values: list[str]) -> list[str]:
    return [*([name] if name.startswith("-") else []), *values]


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: " ".join(walk.base))
def test_no_option_is_without_effect(
    walk: Walk, run: Callable[[list[str]], tuple[bool, str]]
) -> None:
    base = list(walk.base)
    _, bare = run(base)
    seen = {name: values for name, values in walk.options.items() if name not in walk.unseen}
    alone = {name: run([*base, *_words(name, values)]) for name, values in seen.items()}
    silent = [name for name, (refused, out) in alone.items() if not refused and out == bare]
    assert not silent
    pairs = []
    for one, other in itertools.combinations(seen, 2):
        words = [*_words(one, seen[one]), *_words(other, seen[other])]
        refused, both = run([*base, *words])
        if refused or frozenset((one, other)) in walk.same:
            continue
        if both in (alone[one][1], alone[other][1]):
            pairs.append((one, other))
    assert not pairs
    assert all(len(reason) > 10 for reason in [*walk.unseen.values(), *walk.same.values()])


def _tree(command: Any, path: str = "") -> Iterator[tuple[str, str]]:
    for name, below in getattr(command, "commands", {}).items():
        yield from _tree(below, f"{path} {name}".strip())
    if path and not getattr(command, "commands", {}):
        for parameter in command.params:
            is_option = parameter.opts[0].startswith("-")
            longest = max(parameter.opts, key=len)
            yield path, longest if is_option else str(parameter.name).upper()


def test_every_option_of_every_verb_is_walked() -> None:
    tree = {(verb, name) for verb, name in _tree(typer.main.get_command(app))}
    walked = {(walk.verb, name) for walk in WALKS for name in (*walk.options, *walk.given) if name}
    assert {pair for pair in tree if pair[0] not in ELSEWHERE} == walked
    assert {verb for verb, _ in tree} >= set(ELSEWHERE)
