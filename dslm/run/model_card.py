"""The model card of a run: recipe, data, steps, loss and versions, as the Hub shows them."""

from __future__ import annotations

from typing import Any

import yaml

from dslm.run.directory import RunDirectory
from dslm.run.events import read_events
from dslm.run.manifest import read_manifest


def model_card(run: RunDirectory, step: int) -> str:
    """README.md of the model that a run had made by a step."""
    manifest = read_manifest(run)
    events = [e for e in read_events(run.events)[0] if e.get("step", 0) <= step]
    last: dict[str, dict[str, Any]] = {event["event"]: event for event in events}
    recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    base = recipe["model"].get("name") if recipe["model"].get("init") != "scratch" else None
    head = {"library_name": "peft" if recipe.get("lora") else "transformers", "tags": ["dslm"]}
    if base:
        head["base_model"] = base
    train = last.get("start", {}).get("data", {}).get("train", {})
    facts = {
        "task": recipe.get("task", "pretrain"),
        "steps": step,
        "global batch": recipe["batch"]["global_size"],
        "training data": recipe["data"]["train"],
        "documents": train.get("documents"),
        "tokens": train.get("tokens"),
        "training loss": last.get("step", {}).get("loss"),
        "evaluation loss": last.get("eval", {}).get("loss"),
        "parameters": last.get("start", {}).get("parameters"),
    }
    lines = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    versions = ", ".join(f"{name} {v}" for name, v in manifest.versions.items() if v)
    shown = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# {manifest.name}\n\n{recipe.get('description', '')}\n\n"
        + "\n".join(lines)
        + f"\n\nVersions: {versions}.\n\n## Recipe\n\n```yaml\n{shown}```\n"
    )
