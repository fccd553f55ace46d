"""Filters mean what DeepSpeed's mean, and say what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from dslm.cluster.hosts import Host
from dslm.cluster.select import select, slot_indices
from dslm.errors import HostfileError
from tests.support.golden import SameAs, whole

HOSTS = (Host("w1", 4), Host("w2", 4), Host("w3", 2))
ODD = (Host("me@w1", 4), Host("fe80::1", 4))
TABLE = [
    ({}, [("w1", 4), ("w2", 4), ("w3", 2)]),
    ({"include": "w2"}, [("w2", 4)]),
    ({"include": "w1@w2:0,2"}, [("w1", 4), ("w2", 2, (0, 2))]),
    ({"include": "w2:0,1"}, [("w2", 2)]),
    ({"exclude": "w2"}, [("w1", 4), ("w3", 2)]),
    ({"exclude": "w2:1"}, [("w1", 4), ("w2", 3, (0, 2, 3)), ("w3", 2)]),
    ({"include": "w2:1,2,3", "num_gpus": 2}, [("w2", 2, (1, 2))]),
    ({"num_nodes": 2}, [("w1", 4), ("w2", 4)]),
    ({"num_nodes": 3}, [("w1", 4), ("w2", 4), ("w3", 2)]),
    ({"include": "w3:1"}, [("w3", 1, (1,))]),
    ({"num_gpus": 2}, [("w1", 2), ("w2", 2), ("w3", 2)]),
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"include": "w9"}, "w9"),
    ({"include": "w1:7"}, "slot 7"),
    ({"include": "w1", "exclude": "w2"}, "together"),
    ({"exclude": "w1@w2@w3"}, "no slot"),
    ({"num_nodes": 4}, "4 hosts"),
    ({"num_gpus": 3}, "w3 has 2"),
    ({"include": "w1:x"}, "`x`"),
    ({"include": "w1:4"}, "slot 4"),
    ({"exclude": "w3:2"}, "slot 2"),
    ({"include": "far"}, "far"),
    ({"include": "w1@w2@w1"}, "twice"),
    ({"include": "w9:1:0"}, "w9"),
    ({"include": "w3:1", "num_gpus": 2}, "1 slot"),
    ({"exclude": "w1@w2@w3:0,1"}, "no slot"),
]
MANY = tuple(Host(f"node-{number}", 1) for number in range(12))


@pytest.mark.parametrize(("filters", "left"), TABLE)
def test_what_is_left(filters: dict[str, str], left: list[tuple[str, int]]) -> None:
    assert select(HOSTS, **filters) == tuple(Host(*host) for host in left)  # type: ignore[arg-type]


def test_users_and_addresses_stay_whole() -> None:
    assert select(ODD, include="me@w1:1,2") == (Host("me@w1", 2, (1, 2)),)
    assert select(ODD, include="me@w1@fe80::1:3") == (ODD[0], Host("fe80::1", 1, (3,)))
    assert select(ODD, exclude="fe80::1") == (ODD[0],)


@pytest.mark.parametrize(("filters", "said"), BAD)
def test_what_is_wrong(filters: dict[str, str], said: str) -> None:
    with pytest.raises(HostfileError) as caught:
        select(HOSTS, **filters)  # type: ignore[arg-type]
    assert said in caught.value.message


def test_all_that_is_said_of_them(same_as: SameAs) -> None:
    rows: list[tuple[tuple[Host, ...], dict[str, Any]]] = [(HOSTS, bad) for bad, _ in BAD]
    rows += [(ODD, {"include": text}) for text in ("me", "me@w9", "fe80::9:1", "fe80::1:4")]
    rows += [(MANY, {"include": "far"}), (HOSTS[:1], {"exclude": "w1"})]
    text = ""
    for hosts, filters in rows:
        with pytest.raises(HostfileError) as caught:
            select(hosts, **filters)
        text += f"{filters}\n{whole(caught.value)}"
    same_as("findings/select.txt", text)


def test_the_slots_of_the_only_host() -> None:
    (host, *_) = HOSTS
    assert slot_indices(host, None, None) == [0, 1, 2, 3]
    assert slot_indices(host, "w1:3,1", None) == [1, 3]
    assert slot_indices(host, None, "w1:0") == [1, 2, 3]
    for include, exclude, place, said in (
        (None, "w1", "--exclude", "the filters leave no slot"),
        ("w1", "w1", "--include", "`--include` and `--exclude` can't be used together"),
    ):
        with pytest.raises(HostfileError) as caught:
            slot_indices(host, include, exclude)
        assert (caught.value.where.key, caught.value.message) == (place, said)


@pytest.mark.parametrize(
    ("filters", "key"),
    [({}, None), ({"include": "w1"}, "--include"), ({"exclude": "w1"}, "--exclude")],
)
def test_where_nothing_is_left_the_filter_is_named_if_there_is_one(
    filters: dict[str, Any], key: str | None
) -> None:
    with pytest.raises(HostfileError, match="no slot") as caught:
        select((Host("w1", 0),), **filters)
    assert caught.value.where.key == key
