"""CUDA devices as the driver counts them, and which of them a process may see.

Asked through NVML, the driver's own library, since importing torch takes seconds. Facts as plain
values, so that a host can send them to another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from dslm import environment
from dslm.cluster.devices import Device, device_reported
from dslm.codec import Json
from dslm.errors import OptionError, Where


def accelerators() -> list[dict[str, Any]]:
    """Return the devices of this host: name, memory, free memory, UUID, driver.

    Memory is in bytes, None where the device has none of its own (GB10). Empty without a driver, or
    when it doesn't answer.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        return [{**_described(handle), "driver": driver} for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _described(handle: object) -> dict[str, Json]:
    import pynvml

    total: int | None = None  # unified memory
    free: int | None = None
    with suppress(pynvml.NVMLError_NotSupported):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
    return {"name": _text(name), "memory": total, "free": free, "uuid": _text(uuid)}


def _text(answer: str | bytes) -> str:
    """Return an answer of NVML, which some versions of its binding give as bytes, as text."""
    return answer.decode() if isinstance(answer, bytes) else answer


def device_of(facts: Mapping[str, Any], host_memory_bytes: int) -> Device:
    """Turn one reported device into a `Device`; unified-memory parts use the host's memory."""
    return device_reported(facts["name"], facts["memory"] or host_memory_bytes)


def visible_devices(setting: str | None, uuids: Sequence[str]) -> tuple[int, ...]:
    """Return the devices that CUDA_VISIBLE_DEVICES shows, in its order, as the driver counts them.

    Entries are indices, or UUIDs of which the beginning is enough; the first one that names no
    device hides those behind it. Source: CUDA C++ Programming Guide, CUDA Environment Variables.

    Args:
        setting: the variable's value; None: it is not set.
        uuids: of every device.

    Raises:
        OptionError: a MIG instance, which DeepSpeed's launcher can't name; a beginning that several
            devices have; or a device that is named twice.
    """
    if setting is None:
        return tuple(range(len(uuids)))
    found: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        index = _index(entry, uuids)
        if index is None:
            break
        found.append(index)
    twice = [index for index, count in Counter(found).items() if count > 1]
    if twice:
        raise _wrong(f"names device {twice[0]} twice", "name each device once")
    return tuple(found)


def _index(entry: str, uuids: Sequence[str]) -> int | None:
    if entry.upper().startswith("MIG-"):
        raise _wrong(
            f"names a MIG instance, `{entry}`, and DeepSpeed's launcher starts ranks by index only",
            "name whole devices, or run one process with plain `python` on the instance",
        )
    if entry.isdecimal():
        return int(entry) if int(entry) < len(uuids) else None
    if not entry.upper().startswith("GPU-"):
        return None
    matching = [i for i, uuid in enumerate(uuids) if uuid.upper().startswith(entry.upper())]
    if len(matching) > 1:
        raise _wrong(
            f"is ambiguous: `{entry}` matches {len(matching)} devices",
            "give more of its characters",
        )
    return matching[0] if matching else None


def _wrong(what: str, hint: str) -> OptionError:
    name = environment.VISIBLE_DEVICES
    return OptionError(f"{name} {what}", where=Where(key=name), hint=hint)
