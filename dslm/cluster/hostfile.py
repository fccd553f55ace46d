"""Hostfiles: lines of `HOST slots=N`, as DeepSpeed and MPI have them.

Text in, hosts out; every line that is wrong is named, and nothing is ever guessed: DeepSpeed itself
turns a missing hostfile into a local run without a word.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from dslm.cluster.hosts import Host
from dslm.errors import Finding, HostfileError, Where, shortened
from dslm.files import exists
from dslm.reading import read_text

# RFC 1123 labels, joined by dots; underscores occur in the names that container tools give
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LONGEST_NAME = 253  # RFC 1035, 2.3.4
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_MOST_SLOTS = 1024
_MOST_DIGITS = 9


def load_hosts(text: str) -> tuple[Host, ...]:
    """Return the hosts that `--hostfile` names: a file, or hosts with their slots, `w1:4,w2:4`.

    Raises:
        HostfileError: there is no such file, or a line or host in it is wrong.
    """
    path = Path(text)
    is_inline = re.search(r":[0-9]+(,|$)", text) is not None and "/" not in text
    return parse_inline(text) if is_inline and not exists(path) else load_hostfile(path)


def load_hostfile(path: Path) -> tuple[Host, ...]:
    """Read a hostfile.

    Raises:
        HostfileError: it is missing, unreadable, or wrong: with every line that is.
    """
    if not exists(path):
        raise HostfileError(
            "there is no such hostfile",
            where=Where(file=path),
            hint="a text file with lines such as `worker-1 slots=8`",
        )
    return parse_hostfile(read_text(path, error=HostfileError), path)


def parse_hostfile(text: str, path: Path | str = "hostfile") -> tuple[Host, ...]:
    """Parse the hosts of a hostfile's text, in its order.

    Raises:
        HostfileError: with every line that is wrong.
    """
    hosts: list[Host] = []
    findings: list[Finding] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        content = line.removesuffix("\r").split("#", 1)[0].strip(" \t")
        if not content:
            continue
        try:
            host = parse_line(content)
            machine = host.address.lower()
            if machine in first_line:
                raise ValueError(f"host `{host.address}` is already on line {first_line[machine]}")
        except ValueError as failure:
            findings.append(Finding(message=str(failure), where=Where(file=path, line=number)))
            continue
        first_line[machine] = number
        hosts.append(host)
    if len(findings) == 1:
        raise HostfileError(
            findings[0].message, where=findings[0].where, hint="a line is `HOST slots=N`"
        )
    if findings:
        raise HostfileError(
            f"{len(findings):,} lines of the hostfile are wrong",
            where=Where(file=path),
            findings=findings,
            hint="a line is `HOST slots=N`",
        )
    if not hosts:
        raise HostfileError(
            "the hostfile names no host", where=Where(file=path), hint="a line is `HOST slots=N`"
        )
    return tuple(hosts)


def parse_line(content: str) -> Host:
    """Parse one line without its comment.

    Raises:
        ValueError: what is wrong with it.
    """
    odd = next((c for c in content if not c.isascii() or (not c.isprintable() and c != "\t")), None)
    if odd is not None:
        raise ValueError(f"the character {odd!r} (U+{ord(odd):04X}) is not allowed in a hostfile")
    name, *rest = content.split()
    check_host_name(name)
    if not rest:
        raise ValueError(f"`{shortened(name)}` has no slots: write `{shortened(name)} slots=N`")
    match = re.fullmatch(r"slots=([0-9]+)", rest[0])
    if not match:
        raise ValueError(f"`{shortened(rest[0])}` is not `slots=N`")
    if len(rest) > 1:
        raise ValueError(f"`{shortened(' '.join(rest[1:]))}` after the slots is not understood")
    slots = int(match[1]) if len(match[1]) <= _MOST_DIGITS else _MOST_SLOTS + 1
    if not 0 < slots <= _MOST_SLOTS:
        raise ValueError(f"slots must be from 1 to {_MOST_SLOTS}, not {shortened(match[1])}")
    return Host(name, slots)


def parse_inline(text: str) -> tuple[Host, ...]:
    """Hosts given on the command line as horovodrun takes them: `w1:4,w2:4`.

    Raises:
        HostfileError: one of them is wrong.
    """
    parts = [part.rpartition(":") for part in text.split(",")]
    lines = [f"{name} slots={slots}" if colon else slots for name, colon, slots in parts]
    return parse_hostfile("\n".join(lines), "--hostfile")


def check_host_name(text: str) -> None:
    """Check a host's name: a DNS name, an IPv4 or IPv6 address, with `user@` before it or not.

    What passes holds no character that any shell could take for anything but itself.

    Raises:
        ValueError: it isn't one.
    """
    user, at, name = text.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise ValueError(f"`{shortened(user)}` is not a user name")
    if is_ipv6(name):
        return
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        # a last label of digits alone makes it an address (RFC 1123, 2.1), and that is a wrong one
        is_address = name.rpartition(".")[2].isdigit() and "." in name
        if is_address or not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise ValueError(f"`{shortened(text)}` is not a host name") from None


def is_ipv6(name: str) -> bool:
    """Return whether a name is an IPv6 address, in brackets or not."""
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        ipaddress.IPv6Address(bare)
    except ValueError:
        return False
    return "%" not in bare  # an interface after it means another thing on each host


def render_hostfile(hosts: Sequence[Host]) -> str:
    """Return the text that `parse_hostfile` reads back unchanged."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def hosts_document(hosts: Sequence[Host]) -> dict[str, object]:
    """Hosts as `dslm hosts show --json` has them."""
    return {
        "hosts": [{"host": host.name, "slots": host.slots} for host in hosts],
        "total_slots": sum(host.slots for host in hosts),
    }
