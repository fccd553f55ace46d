"""A free port, and connections whose other end is silent."""

from __future__ import annotations

import socket
import time

import pytest

from dslm.host import network
from dslm.host.network import free_port, give_up_after, port_in_use, unanswered_seconds


def test_a_free_port_is_none_that_the_kernel_hands_out() -> None:
    low = network._lowest_handed_out()
    assert low > 1024
    for _ in range(100):
        assert 10_000 <= free_port() < low


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(network, "_lowest_handed_out", lambda: 2**16)
        drawn = iter([port - 10_000, port - 10_000, 5])
        monkeypatch.setattr("secrets.randbelow", lambda most: next(drawn))
        assert free_port() == 10_005


@pytest.mark.parametrize("low", [0, 1024, 10_000])
def test_without_ports_of_its_own_the_kernel_chooses(
    monkeypatch: pytest.MonkeyPatch, low: int
) -> None:
    monkeypatch.setattr(network, "_lowest_handed_out", lambda: low)
    assert not port_in_use(free_port())


def test_a_kernel_that_is_there_answers_whatever_its_processes_do() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connected,
        server.accept()[0] as accepted,
    ):
        give_up_after(accepted, 6.0)
        time.sleep(1.7)  # nobody says anything
        assert unanswered_seconds(accepted) < 1.6
        connected.sendall(b"x")
        time.sleep(0.05)
        assert unanswered_seconds(accepted) < 0.5
