"""The screen of a dry run: recipe, DeepSpeed config, what every rank reads, hosts, command."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from typing import TYPE_CHECKING

from dslm.cli import terminal
from dslm.recipe.load import dump_recipe

if TYPE_CHECKING:
    from dslm.decide.job import Job
    from dslm.launch.spec import LaunchRequest
    from dslm.lifecycle.fleet import Fleet
    from dslm.run.attempt import Attempt

# fields of an attempt that only a launch fills: its number, its supervisor's address
_NOT_YET = ("number", "control")


def show_dry_run(
    fleet: Fleet, job: Job | None, request: LaunchRequest, attempt: Attempt, *, json: bool
) -> None:
    """Show everything that a launch would use, as files that can be copied."""
    hosts = {
        "preflight": fleet.remote and fleet.preflight,
        "max_restarts": fleet.max_restarts,
        "min_nodes": fleet.min_nodes,
    }
    told = {
        name: value for name, value in asdict(attempt).items() if value and name not in _NOT_YET
    }
    if json:
        resolved = (
            {"recipe": job.recipe.model_dump(mode="json"), "ds_config": job.config.values}
            if job
            else {}
        )
        terminal.write_json(
            {
                **resolved,
                "command": list(request.argv),
                "environment": dict(request.environment),
                "attempt": told,
                "hosts": hosts,
            }
        )
        return
    if job is not None:
        terminal.write("# recipe.yaml\n" + dump_recipe(job.recipe))
        terminal.write("\n# ds_config.json\n" + json_format.dumps(job.config.values, indent=2))
    terminal.write("\n# what every rank reads\n" + json_format.dumps(told, indent=2))
    terminal.write("\n# checks and restarts\n" + json_format.dumps(hosts, indent=2))
    for path, content in request.files.items():
        terminal.write(f"\n# {terminal.shown_path(path)}\n{content}")
    terminal.write("\n# command\n" + request.render())
