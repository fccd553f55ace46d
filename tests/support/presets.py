"""The presets that differ in more than the model's name: for tests that take long over each."""

from __future__ import annotations

import json

from dslm.recipe.catalog import Preset, entries


def distinct() -> list[Preset]:
    """Return one preset of each architecture."""
    found: dict[str, Preset] = {}
    for preset in sorted(entries(), key=lambda one: len(one.name)):
        found.setdefault(json.dumps(preset.architecture, sort_keys=True), preset)
    return sorted(found.values(), key=lambda preset: preset.name)
