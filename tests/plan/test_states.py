"""Model states and communication as the ZeRO papers have them."""

from __future__ import annotations

import json

import pytest

from dslm.cluster.speed import sent
from dslm.plan.time import collectives
from tests.conftest import Dslm

# arXiv 1910.02054, table 1: GB (1e9 bytes) per device; degree → (P_os, P_os+g, P_os+g+p)
TABLE: dict[str, dict[int, tuple[float, float, float]]] = {
    "7.5B": {
        1: (120, 120, 120), 4: (52.5, 41.3, 30), 16: (35.6, 21.6, 7.5),
        64: (31.4, 16.6, 1.88), 256: (30.4, 15.4, 0.47), 1024: (30.1, 15.1, 0.12),
    },
    "128B": {
        1: (2048, 2048, 2048), 4: (896, 704, 512), 16: (608, 368, 128),
        64: (536, 284, 32), 256: (518, 263, 8), 1024: (513, 257, 2),
    },
    "1T": {
        1: (16000, 16000, 16000), 4: (7000, 5500, 4000), 16: (4750, 2875, 1000),
        64: (4187, 2218, 250), 256: (4046, 2054, 62.5), 1024: (4011, 2013, 15.6),
    },
}  # fmt: skip
ROWS = [
    (size, degree, stage, sizes[stage - 1])
    for size, degrees in TABLE.items()
    for degree, sizes in degrees.items()
    for stage in (1, 2, 3)
]


@pytest.mark.parametrize(("size", "degree", "stage", "expected"), ROWS)
def test_model_states_are_those_of_the_paper(
    size: str, degree: int, stage: int, expected: float
) -> None:
    from dslm.plan.report import params_document
    from dslm.units import parse_count

    found = params_document(parse_count(size), stage=stage, gpus=degree, device=None)
    gigabytes = found["memory"]["device"]["total"] / 1e9
    # the paper rounds, or cuts off, at its last digit
    digit = 10 ** -(len(str(expected).partition(".")[2]) if expected % 1 else 0)
    assert abs(gigabytes - expected) < digit


def test_what_cannot_be_known_is_null_and_said(dslm: Dslm) -> None:
    found = json.loads(
        dslm("plan", "--params", "7.5B", "--zero", "1", "--gpus", "64", "--json").stdout
    )
    assert found["memory"]["device"]["activations"] is None
    assert found["time"] is None
    assert "recipe" in found["note"]


def test_communication_volumes_are_those_of_the_papers() -> None:
    def in_parameters(stage: int, *, zeropp: bool = False) -> float:
        found = collectives(
            whole=1.0,
            trained=1.0,
            stage=stage,
            accumulation=1,
            hosts=2,
            second=zeropp,
            quantized=(zeropp, zeropp),
        )
        return sum(one.times * sent(one.name, one.size, 10**6) for one in found if not one.inside)

    for stage in (0, 1, 2):
        assert in_parameters(stage) == pytest.approx(2, rel=1e-3)
    assert in_parameters(3) == pytest.approx(3, rel=1e-3)
    assert in_parameters(3, zeropp=True) == pytest.approx(0.75, rel=1e-3)
