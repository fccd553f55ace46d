"""TCP on this host: a free port, whether one is taken, connections that notice a host that is gone.

Knows sockets, nothing of what is said over them.
"""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


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
