"""The planner's benchmarks that need no training: published runs, and the GPU's without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import mean, median

import pytest
import torch

from benchmarks import planner_gpu, planner_published
from dslm.cluster.devices import device_named
from dslm.decide.job import resolve_job
from dslm.plan.report import cluster_of
from dslm.recipe.load import load_recipe

ROOT = Path(__file__).parent.parent.parent


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "benchmarks.planner_gpu", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: make bench-gpu measures")
def test_without_a_gpu_its_benchmark_says_so_and_fails() -> None:
    done = _run()
    assert done.returncode != 0
    assert "no CUDA device" in done.stderr


def test_its_configurations_can_be_listed_and_planned() -> None:
    lines = _run("--list").stdout.splitlines()
    assert len(lines) == len(planner_gpu.CONFIGURATIONS) >= 12
    cluster = cluster_of(device_named("h100-80gb"), 1)
    for configuration in planner_gpu.CONFIGURATIONS:
        loaded = load_recipe(configuration.preset, configuration.overrides())
        job = resolve_job(loaded, cluster)
        assert job.plan.fits, planner_gpu.title(configuration)
        assert job.plan.strategy.zero_stage == configuration.zero_stage


def test_the_time_model_foresees_published_runs_that_it_was_not_fitted_to() -> None:
    runs = planner_published.RUNS
    assert len(runs) >= 100
    assert {run.source for run in runs} <= set(planner_published.SOURCES)
    # the whole table is `make bench-planner`; these need three traces
    models = {"mpt-1b", "mpt-7b", "llama-2-13b"}
    others = [run for run in runs if not run.fitted and run.model in models]
    found = [abs(error) for error in planner_published.errors(others)]
    assert len(found) >= 25
    assert mean(found) < 0.06
    assert median(found) < 0.05
