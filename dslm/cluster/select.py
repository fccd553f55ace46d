"""Host filters in DeepSpeed's syntax: `w1@w2:0,2` is all of w1 and two slots of w2.

Hosts in, hosts out; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence

from dslm.cluster.hosts import Host
from dslm.errors import HostfileError, Where, did_you_mean


def select(
    hosts: Sequence[Host],
    *,
    include: str | None = None,
    exclude: str | None = None,
    num_nodes: int | None = None,
    num_gpus: int | None = None,
) -> tuple[Host, ...]:
    """The hosts that are left, with the number of slots that is left on each.

    Raises:
        HostfileError: an unknown host or slot, both filters at once, or nothing is left.
    """
    chosen = [
        Host(host.name, len(slots))
        for host in hosts
        if (slots := _slots_left(host, hosts, include, exclude))
    ]
    if not chosen:
        raise HostfileError("the filters leave no slot", where=_where(include, exclude))
    if num_nodes is not None:
        if num_nodes > len(chosen):
            raise HostfileError(
                f"{num_nodes} hosts are asked for, but there are {len(chosen)}",
                where=Where(key="--num-nodes"),
            )
        chosen = chosen[:num_nodes]
    if num_gpus is not None:
        for host in chosen:
            if num_gpus > host.slots:
                raise HostfileError(
                    f"{num_gpus} ranks a host are asked for, but {host.name} has {host.slots} "
                    f"slot{'s' if host.slots > 1 else ''}",
                    where=Where(key="--num-gpus"),
                    hint=f"`--num-gpus {min(h.slots for h in chosen)}` or fewer",
                )
        chosen = [Host(host.name, num_gpus) for host in chosen]
    return tuple(chosen)


def slot_indices(host: Host, include: str | None, exclude: str | None) -> list[int]:
    """Which slots of the only host are left.

    Raises:
        HostfileError: as `select`.
    """
    slots = _slots_left(host, [host], include, exclude)
    if not slots:
        raise HostfileError("the filters leave no slot", where=_where(include, exclude))
    return slots


def _slots_left(
    host: Host, hosts: Sequence[Host], include: str | None, exclude: str | None
) -> list[int]:
    if include is not None and exclude is not None:
        raise HostfileError(
            "`--include` and `--exclude` can't be used together", where=Where(key="--include")
        )
    everything = list(range(host.slots))
    if include is not None:
        kept = _parse(include, hosts, "--include").get(host.name)
        return [] if kept is None else kept or everything
    if exclude is not None:
        dropped = _parse(exclude, hosts, "--exclude").get(host.name)
        if dropped is None:
            return everything
        return [slot for slot in everything if dropped and slot not in dropped]
    return everything


def _parse(text: str, hosts: Sequence[Host], option: str) -> dict[str, list[int]]:
    """Slots by host; an empty list means all of them."""
    known = {host.name: host.slots for host in hosts}
    where = Where(key=option)
    found: dict[str, list[int]] = {}
    for part in text.split("@"):
        name, colon, slots = part.strip().partition(":")
        if name not in known:
            raise HostfileError(
                f"there is no host `{name}`",
                where=where,
                hint=did_you_mean(name, known) or f"known: {', '.join(list(known)[:8])}",
            )
        if name in found:
            raise HostfileError(f"host `{name}` stands there twice", where=where)
        indices = []
        for slot in slots.split(",") if colon else []:
            if not (slot.isascii() and slot.isdigit()):
                raise HostfileError(
                    f"`{slot}` is not the number of a slot", where=where, hint="such as `w1:0,2`"
                )
            if int(slot) >= known[name]:
                raise HostfileError(
                    f"{name} has no slot {int(slot)}, only 0 to {known[name] - 1}", where=where
                )
            indices.append(int(slot))
        found[name] = sorted(set(indices))
    return found


def _where(include: str | None, exclude: str | None) -> Where:
    return Where(key="--include" if include else "--exclude" if exclude else None)
