"""The screen of a dry run: recipe, DeepSpeed config, what every rank reads, hosts, command."""

from __future__ import annotations

import json as json_format
from dataclasses import asdict
from typing import TYPE_CHECKING

from dslm.cli import terminal
from dslm.recipe.load import dump_recipe

if TYPE_CHECKING:
    from dslm.lifecycle.fleet import Fleet
    from dslm.lifecycle.request import Preview

# fields of an attempt that only a launch fills: its number, its supervisor's address
_NOT_YET = ("number", "control")


def show_dry_run(fleet: Fleet, preview: Preview, *, json: bool) -> None:
    """Show everything that a launch would use, as files that can be copied; then the remarks."""
    job, request = preview.job, preview.request
    hosts = {
        "preflight": fleet.remote and fleet.preflight,
        "max_restarts": fleet.max_restarts,
        "min_nodes": fleet.min_nodes,
    }
    attempt = asdict(preview.attempt)
    told = {name: value for name, value in attempt.items() if value and name not in _NOT_YET}
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
                "remarks": list(preview.remarks),
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
    for remark in preview.remarks:
        terminal.say(remark)
