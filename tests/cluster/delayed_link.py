"""A cable between two network devices on which every frame takes its time, in both directions.

    python -m tests.cluster.delayed_link DEVICE DEVICE MILLISECONDS

What `tc netem delay` does, for kernels that are built without it. Says "ready" when frames pass.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque

# linux/if_ether.h, linux/if_packet.h
_EVERY_PROTOCOL = 0x0003
_SOL_PACKET = 263
_VNET_HEADER, _IGNORE_OUTGOING = 15, 23
_LARGEST = 2**16 + 256  # a segment before it is cut into frames, and its headers


def _port(device: str) -> socket.socket:
    """All frames that come in at a device, with the word of what is still to be done to them.

    That word, a virtio_net_hdr, goes along: checksums and segments are left to the devices.
    """
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL))
    port.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
    port.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    port.bind((device, _EVERY_PROTOCOL))
    return port


def forward(one: str, other: str, seconds: float) -> None:
    """Pass frames on between two devices, each so many seconds after it came."""
    ports = _port(one), _port(other)
    to = {ports[0]: ports[1], ports[1]: ports[0]}
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()
    print("ready", flush=True)
    while True:
        left = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for port in select.select(ports, [], [], left)[0]:
            waiting.append((time.monotonic() + seconds, to[port], port.recv(_LARGEST)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, port, frame = waiting.popleft()
            port.send(frame)


if __name__ == "__main__":
    forward(sys.argv[1], sys.argv[2], int(sys.argv[3]) / 1000)
