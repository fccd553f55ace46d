"""Host filters in DeepSpeed's syntax: `w1@w2:0,2` is all of w1 and two slots of w2.

Hosts in, hosts out; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence

from dslm.cluster.hosts import Host
from dslm.errors import HostfileError, Where, did_you_mean
from dslm.units import number_of


def select(
    hosts: Sequence[Host],
    *,
    include: str | None = None,
    exclude: str | None = None,
    num_nodes: int | None = None,
    num_gpus: int | None = None,
) -> tuple[Host, ...]:
    """Return the hosts that are left, with the slots that are left on each.

    Raises:
        HostfileError: an unknown host or slot, both filters at once, or nothing is left.
    """
    chosen = [
        _with_slots(host, slots)
        for host in hosts
        if (slots := _slots_left(host, hosts, include, exclude))
    ]
    if not chosen:
        raise HostfileError("the filters leave no slot", where=_where(include, exclude))
    if num_nodes is not None:
        if num_nodes > len(chosen):
            raise HostfileError(
                f"{num_nodes} hosts were requested, but there are {len(chosen)}",
                where=Where(key="--num-nodes"),
            )
        chosen = chosen[:num_nodes]
    if num_gpus is not None:
        for host in chosen:
            if num_gpus > host.slots:
                raise HostfileError(
                    f"{num_gpus} ranks a host were requested, but {host.name} has "
                    f"{number_of(host.slots, 'slot')}",
                    where=Where(key="--num-gpus"),
                    hint=f"`--num-gpus {min(h.slots for h in chosen)}` or fewer",
                )
        chosen = [Host(host.name, num_gpus, host.devices[:num_gpus]) for host in chosen]
    return tuple(chosen)


def slot_indices(host: Host, include: str | None, exclude: str | None) -> list[int]:
    """Which slots of the only host are left.

    Raises:
        HostfileError: as `select`.
    """
    slots = _slots_left(host, [host], include, exclude)
    if not slots:
        raise HostfileError("the filters leave no slot", where=Where(key="--exclude"))
    return slots


def _with_slots(host: Host, slots: list[int]) -> Host:
    """The host with these slots; which ones is said only when they are not the first."""
    first = slots == list(range(len(slots)))
    return Host(host.name, len(slots), () if first else tuple(slots))


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
    for part in _parts(text, known):
        name, colon, slots = _split(part, known)
        if name not in known:
            raise HostfileError(
                f"there is no host `{name}`",
                where=where,
                hint=did_you_mean(name, known) or f"known: {', '.join(list(known)[:8])}",
            )
        if name in found:
            raise HostfileError(f"host `{name}` is listed twice", where=where)
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


def _parts(text: str, known: dict[str, int]) -> list[str]:
    """The parts between `@`s; one that is a known host's `user@` stays with it."""
    users = {name.partition("@")[0] for name in known if "@" in name}
    parts: list[str] = []
    pieces = [piece.strip() for piece in text.split("@")]
    while pieces:
        piece = pieces.pop(0)
        whole = f"{piece}@{pieces[0]}" if pieces and piece in users else ""
        if whole and _split(whole, known)[0] in known:
            pieces.pop(0)
            piece = whole
        parts.append(piece)
    return parts


def _split(part: str, known: dict[str, int]) -> tuple[str, str, str]:
    """Name, colon and slots; an IPv6 address holds colons itself."""
    if part in known:
        return part, "", ""
    name, colon, slots = part.rpartition(":")
    if colon and name in known:
        return name, colon, slots
    return part.partition(":")


def _where(include: str | None, exclude: str | None) -> Where:
    return Where(key="--include" if include else "--exclude" if exclude else None)
