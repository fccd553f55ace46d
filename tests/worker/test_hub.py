"""Without a way to the Hub nobody waits for minutes."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from dslm.worker import hub as reaching
from dslm.worker.hub import in_reach, stay_offline_without_hub
from tests.worker.preparing import recipe_of


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9", "https://hub.invalid", "http://[::1]:9"]
)
def test_a_hub_that_does_not_answer_is_left_alone_after_two_tries(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    told: list[str] = []
    recipe = recipe_of("pretrain", "stdlib", model__init="pretrained", model__name="some/model")
    stay_offline_without_hub(recipe, told.append)
    assert os.environ.pop("HF_HUB_OFFLINE") == "1"
    assert [line.partition("(")[2] for line in told[:2]] == ["try 1 of 2)", "try 2 of 2)"]
    assert "can't be reached" in told[2]


def test_an_address_that_takes_no_connection_costs_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]  # they fill the queue: others hang
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{full.getsockname()[1]}")
        monkeypatch.setattr(reaching, "_SECONDS", 0.5)
        began = time.monotonic()
        assert not in_reach(lambda detail: None)
        assert time.monotonic() - began < 15
        for one in waiting:
            one.close()


def test_a_hub_that_answers_and_files_of_ones_own_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    settings: dict[str, Any] = {"model__init": "pretrained"}
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        stay_offline_without_hub(
            recipe_of("pretrain", "stdlib", model__name="some/model", **settings), told.append
        )
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    stay_offline_without_hub(recipe_of("pretrain", "stdlib"), told.append)
    assert told == []
    assert "HF_HUB_OFFLINE" not in os.environ
