"""TCP on this host: a free port, whether one is taken, connections that notice a host that is gone.

Knows sockets, nothing of what is said over them.
"""

from __future__ import annotations

import secrets
import socket
import struct
from pathlib import Path

_FIRST, _TRIES = 10_000, 50  # ports below are where services listen that have a number of their own
_LAST_ACK_RECV = struct.Struct("56xI")  # linux/tcp.h, tcp_info.tcpi_last_ack_recv: milliseconds


def free_port() -> int:
    """Return a port that nothing listens on now.

    One that the kernel doesn't hand out by itself: of those a connection of any process may have it
    before who asks for it listens. Source: ip(7), ip_local_port_range.
    """
    low = _lowest_handed_out()
    for _ in range(_TRIES if low > _FIRST else 0):
        port = _FIRST + secrets.randbelow(low - _FIRST)
        if not port_in_use(port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        given: int = probe.getsockname()[1]
        return given


def _lowest_handed_out() -> int:
    """Return the lowest port that the kernel chooses by itself; 0: not known."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def port_in_use(port: int) -> bool:
    """Return whether something listens on a port of this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # as torch's own store does: a port that was just left can be taken again
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def address_towards(host: str) -> str:
    """Return the address of this host on the way to another; nothing is sent.

    Raises:
        OSError: the host's name can't be resolved, or no route leads there.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        address: str = probe.getsockname()[0]
        return address


def give_up_after(channel: socket.socket, seconds: float) -> None:
    """Let the kernel end a connection whose other host has not answered in time.

    Source: tcp(7), TCP_USER_TIMEOUT, which also overrides keepalive's own count.
    """
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
    channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def unanswered_seconds(channel: socket.socket) -> float:
    """Return how long the other host's kernel has acknowledged nothing, as tcp(7), TCP_INFO has it.

    With `give_up_after` it is asked every second, whatever the processes of that host do.
    """
    found = channel.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK_RECV.size)
    milliseconds: int = _LAST_ACK_RECV.unpack(found)[0]
    return milliseconds / 1000
