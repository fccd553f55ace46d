"""A DeepSpeed config as its checks look at it: values by dotted path, whatever else is wrong.

Each of these answers something harmless where a value is missing or of a wrong type: that a value
is wrong is said once, by `dslm.zero.values`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dslm.errors import Finding, Where

Config = Mapping[str, object]


def error(rule: str, key: str, message: str, hint: str = "") -> Finding:
    """A mistake: DeepSpeed refuses it, or trains something else than is written."""
    return Finding(message=message, where=Where(key=key), hint=hint, rule=rule)


def warning(rule: str, key: str, message: str, hint: str = "") -> Finding:
    """Something doubtful that runs."""
    return Finding(message=message, where=Where(key=key), hint=hint, severity="warning", rule=rule)


def value_at(config: Config, path: str) -> object:
    """Return the value at a dotted path, or None."""
    value: object = config
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def section_at(config: Config, path: str) -> Config:
    """Return the section at a dotted path; empty if there is none."""
    value = value_at(config, path)
    return value if isinstance(value, Mapping) else {}


def stage_of(config: Config) -> int | None:
    """Return the ZeRO stage; None if it is "auto" or no stage."""
    zero = config.get("zero_optimization")
    if isinstance(zero, bool):
        return int(zero)
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else 0
    if isinstance(stage, int | float) and not isinstance(stage, bool) and stage in (0, 1, 2, 3):
        return int(stage)
    return None


def is_on(config: Config, path: str) -> bool:
    """Return whether a switch is on; "auto" and a wrong value are not."""
    value = value_at(config, path)
    return value is True or (isinstance(value, int | float) and value == 1)


def is_offloaded(config: Config, path: str) -> bool:
    """Return whether a section offloads something to a device."""
    return value_at(config, f"{path}.device") in ("cpu", "nvme")


def number_at(config: Config, path: str) -> float | None:
    """Return the number at a dotted path, or None."""
    value = value_at(config, path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value
