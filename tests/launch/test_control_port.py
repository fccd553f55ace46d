"""Whoever reaches the control port ends their own connection, and nothing else."""

from __future__ import annotations

import errno
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dslm.codec import Malformed
from dslm.launch import control as channel
from dslm.launch.control import Control
from dslm.run import timings
from dslm.run.endings import ErrorReport, Loss, Raised, report_of
from dslm.run.events import Step
from dslm.run.words import (
    ORDERS,
    REPORTS,
    Beat,
    End,
    EndNow,
    Hello,
    Order,
    Orphaned,
    Recorded,
    Report,
    ShowStacks,
    Stacks,
    Stop,
    StopWanted,
    WordReader,
    decode_word,
    encode_word,
)

HELLO = Hello(rank=0, pid=4, start_time=1, parent_pid=3, parent_start_time=1, kills_before=None)
BEAT = Beat(progress=1, phase="training", step=1, work_seconds=0.5)
EVENT = Step(time=1.5, attempt=1, step=3)
REPORT = ErrorReport(chain=(Raised(type="ValueError", message="ü"),))
WORDS: list[Report] = [
    HELLO,
    BEAT,
    End(exit_code=1, ended=2.0, report=REPORT),
    Stacks(text="Thread"),
    Orphaned(),
    StopWanted(),
    Recorded(event=EVENT),
]
# What arrives without a token. Each is sent whole, with and without a line break.
STRANGE = {
    "nothing": b"",
    "an object for a greeting": b'{"hello": "x"}',
    "a greeting of the old form": b'{"hello": {"token": "guess", "rank": 0}}',
    "null": b"null",
    "a number": b"5",
    "an empty list": b"[]",
    "20,000 lists in each other": b"[" * 20_000,
    "20,000 objects in each other": b'{"a":' * 20_000,
    "a number of 5,000 digits": b"9" * 5_000,
    "a line of 8 MiB": b"a" * (8 * 2**20),
    "NULs": b"\0" * 100,
    "invalid UTF-8": b"\xff\xfe\x80" * 30,
    "half of a surrogate pair": b'"\\ud800"',
    "HTTP": b"GET / HTTP/1.1\r\nHost: w1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    "a token of the right length": b"x" * 32 + b"\n" + encode_word(HELLO),
    "an empty line before a greeting": b"\n" + encode_word(HELLO),
}


def changed(word: Any, change: dict[str, Any]) -> bytes:
    """The line of a word, some of its fields changed."""
    name, _, fields = encode_word(word).partition(b" ")
    return name + b" " + json.dumps({**json.loads(fields), **change}).encode() + b"\n"


# What a rank says that is no word: bytes, or a line made of a word and a change of its fields.
MALFORMED: dict[str, bytes] = {
    **{name: data + b"\n" for name, data in STRANGE.items() if data},
    "NaN": b'beat {"progress": 1, "phase": "", "step": 1, "work_seconds": NaN}\n',
    "1e999": b'beat {"progress": 1, "phase": "", "step": 1, "work_seconds": 1e999}\n',
    "a word with a list": b"beat [1, 2]\n",
    "a word without its fields": b"beat\n",
    "a word without a break before the next": b"orphaned {}orphaned {}\n",
    "an order": encode_word(Stop()),
    "a second greeting": encode_word(HELLO),
    "too deep an event": b'event {"event": "x", "time": 1, "attempt": 1, "a": '
    + b'{"a":' * 300
    + b"1"
    + b"}" * 301
    + b"\n",
    "an event without its name": b'event {"time": 1, "attempt": 1}\n',
    "an event at no time": b'event {"event": "x", "time": "", "attempt": 1}\n',
    "an event of no attempt": b'event {"event": "x", "time": 1}\n',
    "an event with 1e999": b'event {"event": "x", "time": 1, "attempt": 1, "a": 1e999}\n',
    "too long a chain": changed(WORDS[2], {"report": {"chain": [{"type": "X"}] * 13}}),
}
WRONG_FIELDS: list[tuple[Any, dict[str, Any]]] = [
    (BEAT, {"progress": -1}),
    (BEAT, {"progress": True}),
    (BEAT, {"progress": 2**63}),
    (BEAT, {"step": "1"}),
    (BEAT, {"step": 1.5}),
    (BEAT, {"step": None}),
    (BEAT, {"phase": "x" * 1000}),
    (BEAT, {"phase": {}}),
    (BEAT, {"work_seconds": -1}),
    (BEAT, {"work_seconds": []}),
    (WORDS[2], {"exit_code": 256}),
    (WORDS[2], {"exit_code": None}),
    (WORDS[2], {"report": 5}),
    (WORDS[2], {"report": {"chain": 5}}),
    (WORDS[2], {"report": {"chain": [{"type": 5}]}}),
    (WORDS[2], {"report": {"chain": [{"type": "x" * 2000}]}}),
    (WORDS[2], {"ended": "now"}),
    (WORDS[3], {"text": "x" * 300_000}),
    (HELLO, {"rank": -1}),
    (HELLO, {"pid": 1}),
    (HELLO, {"pid": 2**40}),
    (HELLO, {"kills_before": "no"}),
]


@pytest.fixture
def control() -> Iterator[Control]:
    with Control([("w1", 1), ("w2", 1)]) as listening:
        yield listening


def connect(control: Control) -> socket.socket:
    address = control.address()
    connected = socket.create_connection((address.addresses[0], address.port), timeout=10)
    control.poll(0.05)
    return connected


def join(control: Control, rank: int = 0) -> socket.socket:
    """Come as a rank does."""
    connected = connect(control)
    word = Hello(rank=rank, pid=4, start_time=1, parent_pid=3, parent_start_time=1, kills_before=0)
    connected.sendall(control.address().token.encode() + b"\n" + encode_word(word))
    rounds(control)
    assert rank in control.ranks
    return connected


def rounds(control: Control, count: int = 4) -> None:
    for _ in range(count):
        control.poll(0.02)


def send(control: Control, connected: socket.socket, data: bytes) -> None:
    """Send while the supervisor reads, until it is through or closes."""
    connected.settimeout(0.02)
    while data:
        try:
            data = data[connected.send(data) :]
        except TimeoutError:
            pass
        except OSError:
            break  # it was closed: so be it
        control.poll(0)
    rounds(control)


def is_closed(connected: socket.socket) -> bool:
    connected.settimeout(0)
    try:
        return connected.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_stranger_does_nothing_but_end_its_own_connection(
    control: Control, data: bytes, end: bytes
) -> None:
    rank = join(control)
    before = repr(control.ranks)
    with connect(control) as stranger:
        send(control, stranger, data + end)
        whole = b"\n" in data + end or len(data) > 33
        assert is_closed(stranger) == whole
    rounds(control)
    assert repr(control.ranks) == before
    assert not control.events
    rank.sendall(encode_word(BEAT))
    rounds(control)
    assert control.ranks[0].step == 1


def test_who_says_nothing_or_a_letter_now_and_then_is_not_waited_for(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timings, "CONNECT_SECONDS", 0.3)
    rank = join(control)
    silent, slow, guest = connect(control), connect(control), connect(control)
    guest.sendall(control.address().token.encode() + b"\n")  # and no word after it
    for letter in control.address().token.encode():
        try:
            slow.sendall(bytes([letter]))
        except OSError:
            break
        control.poll(0)
        time.sleep(0.05)
    rounds(control)
    assert is_closed(silent)
    assert is_closed(slow)
    assert is_closed(guest)
    assert not is_closed(rank)


def test_a_crowd_of_strangers_does_not_keep_a_rank_out(control: Control) -> None:
    first = join(control)
    crowd = [connect(control) for _ in range(channel._STRANGERS + 100)]
    second = join(control, 1)
    rounds(control)
    assert sum(is_closed(one) for one in crowd) >= 100
    assert not is_closed(first)
    assert not is_closed(second)
    for one in (*crowd, first, second):
        one.close()


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_a_rank_says_that_is_no_word_is_its_own_failure(control: Control, data: bytes) -> None:
    odd, other = join(control), join(control, 1)
    send(control, odd, data)
    assert control.ranks[0].lost == Loss.WORD
    assert control.ranks[0].malformed
    assert is_closed(odd)
    other.sendall(encode_word(BEAT))
    rounds(control)
    assert control.ranks[1].lives
    assert control.ranks[1].step == 1


@pytest.mark.parametrize(("word", "change"), WRONG_FIELDS)
def test_a_field_that_holds_what_it_may_not_is_refused(word: Any, change: dict[str, Any]) -> None:
    decode_word(changed(word, {}).strip(), REPORTS)
    with pytest.raises(Malformed):
        decode_word(changed(word, change).strip(), REPORTS)


@pytest.mark.parametrize("rank", [2, 2**20])
def test_a_rank_that_is_none_of_the_attempt_is_sent_away(control: Control, rank: int) -> None:
    with connect(control) as connected:
        hello = changed(HELLO, {"rank": rank})
        send(control, connected, control.address().token.encode() + b"\n" + hello)
        assert is_closed(connected)
    assert not control.ranks


def test_a_second_process_can_not_become_a_rank_that_has_come(control: Control) -> None:
    first = join(control)
    with connect(control) as second:
        send(control, second, control.address().token.encode() + b"\n" + encode_word(HELLO))
        assert is_closed(second)
    assert control.ranks[0].lives
    assert not is_closed(first)


def test_what_came_before_a_malformed_word_counts(control: Control) -> None:
    rank = join(control)
    rank.sendall(encode_word(End(exit_code=3, report=REPORT, ended=1.0)) + b"null\n")
    rounds(control)
    assert (control.ranks[0].exit_code, control.ranks[0].report) == (3, REPORT)
    assert control.ranks[0].lost is None


def test_it_listens_on_the_one_address_that_ranks_connect_to() -> None:
    for address in ("127.0.0.1", "127.0.0.2", "::1"):
        with Control([("w1", 1)], address=address) as control:
            assert control.address().addresses == (address,)
            with connect(control) as stranger:
                assert stranger.getpeername()[0] == address
            if address == "127.0.0.2":
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", control.address().port), timeout=5)


def test_a_reader_that_is_slow_is_not_lost_and_gets_its_orders_once(control: Control) -> None:
    slow, quick = join(control), join(control, 1)
    connection = next(c for c in control._connections.values() if c.rank is control.ranks[0])
    full = b"x" * (8 * 2**20)  # more than both kernels keep
    control._flush(connection, full)
    assert connection.channel.unsent
    for _ in range(1000):
        control.send(Stop())
        control.send(ShowStacks())
    rounds(control)
    assert control.ranks[0].lives
    assert quick.recv(4096) == encode_word(Stop()) + encode_word(ShowStacks())
    expected = len(full) + len(encode_word(Stop())) + len(encode_word(ShowStacks()))
    slow.settimeout(5)
    received = 0
    while received < expected:
        received += len(slow.recv(2**20))
        control.poll(0)
    assert control.ranks[0].lives
    control.send(EndNow())
    assert slow.recv(4096) == encode_word(EndNow())


@pytest.mark.parametrize(
    ("failure", "loss"),
    [
        (OSError(errno.ETIMEDOUT, ""), Loss.HOST),
        (OSError(errno.EHOSTUNREACH, ""), Loss.HOST),
        (OSError(errno.ENETDOWN, ""), Loss.HOST),
        (OSError(errno.ECONNRESET, ""), Loss.PROCESS),
        (OSError(errno.EPIPE, ""), Loss.PROCESS),
        (OSError(errno.ENOBUFS, ""), Loss.PROCESS),
        (None, Loss.PROCESS),
    ],
)
def test_only_what_the_kernel_says_of_a_host_is_the_loss_of_a_host(
    control: Control, failure: OSError | None, loss: Loss
) -> None:
    join(control)
    connection = next(iter(control._connections.values()))
    control._end(connection, failure)
    assert control.ranks[0].lost == loss


def test_every_word_comes_through_as_it_was_said() -> None:
    assert {type(word) for word in WORDS} == set(REPORTS.values())
    for word in WORDS:
        assert decode_word(encode_word(word).strip(), REPORTS) == word
    orders: tuple[Order, ...] = (Stop(), ShowStacks(), EndNow())
    for order in orders:
        assert decode_word(encode_word(order).strip(), ORDERS) == order


def chained() -> None:
    nothing: dict[str, int] = {}
    try:
        nothing["of the first"]
    except KeyError as failure:
        raise LookupError("begins\0 \ud800" + "x" * 10**6 + "ends") from failure


def test_the_last_word_has_type_message_and_chain_however_long_they_are() -> None:
    with pytest.raises(LookupError) as raised:
        chained()
    end = End(exit_code=1, ended=1.0, report=report_of(raised.value))
    word = decode_word(encode_word(end)[:-1], REPORTS)
    assert isinstance(word, End)
    assert word.report is not None
    first, last = word.report.chain
    assert (first.type, first.message) == ("KeyError", "'of the first'")
    assert "in chained" in first.frames
    assert last.type == "LookupError"
    assert last.message.startswith("begins")
    assert last.message.endswith("ends")
    assert len(last.message) < 20_000
    last.message.encode()


def test_a_chain_without_an_end_is_cut() -> None:
    failure = ValueError("0")
    for number in range(1, 500):
        following = ValueError(str(number))
        following.__cause__ = failure
        failure = following
    word = End(exit_code=1, ended=1.0, report=report_of(failure))
    assert decode_word(encode_word(word)[:-1], REPORTS) == word


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = st.sampled_from([*REPORTS, *ORDERS]) | st.text(max_size=5)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["rank", "pid", "progress", "phase", "step", "text", "time", "report", "event"]
    ),
    JSON,
)
LINES = st.one_of(
    st.binary(max_size=400),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.builds(lambda name, value: f"{name} {json.dumps(value)}".encode(), NAMES, JSON | FIELDS),
    st.builds(lambda word, change: changed(word, change)[:-1], st.sampled_from(WORDS), FIELDS),
    st.builds(
        lambda word, place, byte: (
            encode_word(word)[:place] + byte + encode_word(word)[place + 1 : -1]
        ),
        st.sampled_from(WORDS),
        st.integers(0, 100),
        st.binary(max_size=3),
    ),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(LINES, max_size=4), st.integers(1, 50))
@example([b"[" * 100_000], 50)
@example([b"9" * 5_000], 50)
def test_whatever_the_bytes_are_the_codec_gives_words_or_one_error(
    lines: list[bytes], piece: int
) -> None:
    data = b"\n".join(lines) + b"\n"
    reader = WordReader(REPORTS)
    words = []
    try:
        for start in range(0, len(data), max(piece, len(data) // 50)):
            words += list(reader.feed(data[start : start + max(piece, len(data) // 50)]))
    except Malformed as failure:
        assert len(str(failure)) < 500
    for word in words:  # and what it gave can be passed on
        assert decode_word(encode_word(word)[:-1], REPORTS) == word


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.booleans(), LINES), max_size=4))
def test_whatever_arrives_the_other_rank_goes_on(sent: list[tuple[bool, bytes]]) -> None:
    with Control([("w1", 1), ("w2", 1)]) as control:
        other = join(control, 1)
        for known, line in sent:
            with connect(control) as connected:
                token = control.address().token.encode() + b"\n" if known else b""
                send(control, connected, token + line + b"\n")
        other.sendall(encode_word(BEAT))
        rounds(control)
        assert control.ranks[1].lives
        assert control.ranks[1].step == 1
        other.close()
