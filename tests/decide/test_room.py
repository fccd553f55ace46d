"""What ranks share and lock of this machine's memory is there before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dslm.cluster.devices import device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.ready import ready_job
from dslm.decide.room import needs_of
from dslm.errors import PreflightError
from dslm.reach import probe
from dslm.recipe.load import load_recipe

MIB = 2**20
SHARES = ("parallel.super_offload=true", "parallel.offload=optimizer", "parallel.zero_stage=3",
          "batch.micro_size=1")  # fmt: skip


def _asked(*settings: str, host: str = "localhost", verb: Verb = Verb.TRAIN, **how: bool) -> int:
    """What a rank shares, of a training that nothing stands against."""
    cluster = Cluster(hosts=(Host(host, 2),), device=device_named("h100"))
    loaded = load_recipe("llama-3.2-1b", ["data.train=stdlib", *settings])
    job = ready_job(loaded, cluster, Asking(verb=verb, **how))
    return needs_of(job.plan).shared


def test_super_offload_is_refused_where_dev_shm_is_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "shared_memory", lambda: 64 * MIB)
    shared = _asked(*SHARES, host="elsewhere")  # is asked itself
    trained = 1_235_814_400
    assert shared == pytest.approx(8 * trained / 2, rel=1e-6)  # a copy and a gradient in fp32
    for verb in (Verb.TRAIN, Verb.PLAN):
        with pytest.raises(PreflightError, match=r"/dev/shm: 64\.0 MiB free") as refused:
            _asked(*SHARES, verb=verb)
        assert refused.value.hint.startswith("9.5 GiB for 2 ranks")
        assert "--shm-size=10g" in refused.value.hint
        assert "`--set parallel.super_offload=false`" in refused.value.hint
    _asked(*SHARES, force=True)
    _asked(*SHARES, here=False)
    _asked(*SHARES[1:])
    monkeypatch.setattr(probe, "shared_memory", lambda: 2 * (shared + 128 * MIB))
    _asked(*SHARES)
    monkeypatch.setattr(probe, "shared_memory", lambda: 2 * (shared + 128 * MIB) - 1)
    with pytest.raises(PreflightError):
        _asked(*SHARES)
    monkeypatch.setattr(probe, "shared_memory", lambda: None)
    with pytest.raises(PreflightError, match="can't be used"):
        _asked(*SHARES)


def test_an_offload_to_a_disk_is_refused_where_memory_can_not_be_locked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = ("parallel.offload=nvme", f"parallel.nvme_path={tmp_path}", "parallel.zero_stage=3",
             "batch.micro_size=1")  # fmt: skip
    monkeypatch.setattr("ctypes.util.find_library", lambda name: name)
    monkeypatch.setattr("dslm.decide.checks.machine._header", lambda name: True)
    monkeypatch.setattr(probe, "locked_memory", lambda: [8 * MIB, None])
    with pytest.raises(PreflightError, match=r"locked memory: 8\.0 MiB") as refused:
        _asked(*given)
    assert "ulimit -l unlimited" in refused.value.hint
    monkeypatch.setattr(probe, "locked_memory", lambda: [None, None])
    _asked(*given)


def test_a_missing_dev_shm_is_none_and_who_may_lock_anything_is_not_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = "Name:\tpython\nCapEff:\t{}\n"
    monkeypatch.setattr(probe, "_limit", lambda which: [8 * MIB, 16 * MIB])
    for able, found in (("0000000000004000", [None, None]), ("0000000000002000", [8, 16])):
        monkeypatch.setattr(Path, "read_text", lambda *_, able=able, **__: status.format(able))
        assert probe.locked_memory() == [n and n * MIB for n in found]

    def gone(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr("shutil.disk_usage", gone)
    assert probe.shared_memory() is None
