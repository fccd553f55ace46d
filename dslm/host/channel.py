"""A TCP connection that never blocks: what can't be sent yet waits here, in order.

A reader that is slow, or whose buffer is full, is not a lost one: only an error of the connection
itself is. Knows bytes, nothing of what they say.
"""

from __future__ import annotations

import socket

from dslm.host.network import unanswered_seconds


class Channel:
    """One end of a connection, with what is still to be sent through it."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Return the descriptor, for `select`; -1 once it is closed."""
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether something waits for the other end to read."""
        return bool(self._unsent)

    @property
    def unanswered(self) -> float:
        """Seconds for which the other host's kernel has acknowledged nothing."""
        return unanswered_seconds(self._socket)

    def send(self, data: bytes) -> None:
        """Send bytes, or as many as go now; `flush` sends the rest.

        Raises:
            OSError: the connection is broken.
        """
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the other end takes it.

        Raises:
            OSError: the connection is broken.
        """
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return
            del self._unsent[:sent]

    def receive(self, most: int) -> bytes | None:
        """Receive up to `most` bytes; empty at the end of the connection, None: nothing yet.

        Raises:
            OSError: the connection is broken.
        """
        try:
            return self._socket.recv(most)
        except (BlockingIOError, InterruptedError):
            return None

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
