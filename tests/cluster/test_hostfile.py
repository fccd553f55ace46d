"""A hostfile is read or refused, line by line; what it says survives writing and reading."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dslm.cluster.hostfile import (
    load_hostfile,
    load_hosts,
    parse_hostfile,
    parse_inline,
    render_hostfile,
)
from dslm.cluster.hosts import Host
from dslm.errors import HostfileError
from dslm.presets import shipped_folder

BAD = [
    ("no slots", "w1\n", "w1"),
    ("zero slots", "w1 slots=0\n", "slots"),
    ("negative slots", "w1 slots=-2\n", "slots=-2"),
    ("no number", "w1 slots=many\n", "slots=many"),
    ("text after", "w1 slots=8 gpus=8\n", "gpus=8"),
    ("twice", "w1 slots=8\nw2 slots=8\nw1 slots=4\n", "line 1"),
    ("space that is none", "w1\u00a0slots=8\n", "U+00A0"),
    ("umlaut", "wörker slots=8\n", "U+00F6"),
    ("empty", "", "no host"),
    ("only comments", "# nothing\n\n", "no host"),
    ("command", "$(reboot) slots=8\n", "$(reboot)"),
    ("backquotes", "`id` slots=8\n", "`id`"),
    ("dash", "-oProxyCommand=x slots=8\n", "-oProxyCommand=x"),
    ("comma", "w1,w2 slots=8\n", "w1,w2"),
    ("semicolon", "w1;ls slots=8\n", "w1;ls"),
    ("bad user", "a$b@w1 slots=8\n", "a$b"),
    ("control character", "w1\x07 slots=8\n", "U+0007"),
    ("same host as another user", "w1 slots=8\nme@w1 slots=8\n", "line 1"),
    ("same host in capitals", "w1 slots=8\nW1 slots=8\n", "line 1"),
    ("half a bracket", "[fe80::1 slots=8\n", "[fe80::1"),
    ("interface in the address", "fe80::1%eth0 slots=8\n", "fe80::1%eth0"),
    ("no address", "10.0.0.300 slots=8\n", "10.0.0.300"),
    ("very many slots", f"w1 slots={'9' * 5000}\n", "1024"),
    ("two names", "w1 w2 slots=8\n", "`w2`"),
    ("too long a name", f"{'a.' * 150}b slots=1\n", "not a host name"),
]


@pytest.mark.parametrize(("text", "said"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_wrong_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(HostfileError) as caught:
        parse_hostfile(text, "hosts")
    whole = caught.value.message + str(caught.value.where)
    assert said in whole
    assert "hosts" in str(caught.value.where)


def test_all_wrong_lines_are_told_at_once() -> None:
    with pytest.raises(HostfileError) as caught:
        parse_hostfile("w1\nw2 slots=4\nw3 slots=x\n", "hosts")
    assert [finding.where.line for finding in caught.value.findings] == [1, 3]


GOOD = [
    ("w1 slots=8  # rack 3\r\nw2 slots=4\r\n", [("w1", 8), ("w2", 4)]),
    ("\ufeffw1 slots=1", [("w1", 1)]),
    ("\n\t w1\tslots=2\n", [("w1", 2)]),
    ("10.0.0.7 slots=8", [("10.0.0.7", 8)]),
    ("fe80::1 slots=8", [("fe80::1", 8)]),
    ("me@gpu-1.example.org slots=8", [("me@gpu-1.example.org", 8)]),
]


@pytest.mark.parametrize(("text", "hosts"), GOOD)
def test_what_is_right_is_read(text: str, hosts: list[tuple[str, int]]) -> None:
    assert parse_hostfile(text) == tuple(Host(*host) for host in hosts)


def test_a_missing_file_is_an_error_and_not_a_local_run(tmp_path: Path) -> None:
    with pytest.raises(HostfileError, match="no such hostfile"):
        load_hostfile(tmp_path / "gone")


def test_hosts_can_be_given_inline() -> None:
    assert parse_inline("w1:4,w2:2") == (Host("w1", 4), Host("w2", 2))
    with pytest.raises(HostfileError):
        parse_inline("w1")


def test_an_option_names_a_file_or_hosts(tmp_path: Path) -> None:
    file = tmp_path / "hostfile"
    file.write_text("w1 slots=2\n")
    assert load_hosts(str(file)) == (Host("w1", 2),)
    assert load_hosts("w1:4,me@w2:2") == (Host("w1", 4), Host("me@w2", 2))
    for missing in ("gone", "w1", "./w1:4", "w1:4,w2"):
        with pytest.raises(HostfileError):
            load_hosts(missing)


@pytest.mark.parametrize("content", [b"w1 slots=8\xff\n", b"\xff\xfew\x001\x00"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hostfile").write_bytes(content)
    with pytest.raises(HostfileError, match="not UTF-8"):
        load_hostfile(tmp_path / "hostfile")
    with pytest.raises(HostfileError, match="can't read it"):
        load_hostfile(tmp_path)


def test_the_shipped_examples_parse() -> None:
    files = [path for path in shipped_folder("hostfiles").iterdir() if path.is_file()]
    assert len(files) >= 5
    for file in files:
        assert load_hostfile(file)
        assert file.read_text().startswith("#"), "says what it is for"


NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z][a-z0-9]{0,5})?", fullmatch=True)


@given(st.dictionaries(NAMES, st.integers(1, 1024), min_size=1, max_size=20))
def test_hosts_survive_writing_and_reading(slots: dict[str, int]) -> None:
    hosts = tuple(Host(name, count) for name, count in slots.items())
    assert parse_hostfile(render_hostfile(hosts)) == hosts
