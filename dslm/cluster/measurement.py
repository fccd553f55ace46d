"""What the worker measured of a machine, as it answers: seconds, not yet speeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dslm.codec import Count, Json, Seconds, Strict

LinkNumbers = Mapping[str, tuple[float, float]]  # by collective: latency, bandwidth


@dataclass(frozen=True, kw_only=True, slots=True)
class Product(Strict):
    """A matrix product."""

    precision: str
    rows: Count
    inner: Count
    columns: Count
    element: Count  # bytes
    seconds: Seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedPass(Strict):
    """A forward and backward pass of one of the models that were asked for."""

    precision: str
    model: Count
    samples: Count
    length: Count
    seconds: Seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A small model whose passes are measured, and at which samples and lengths."""

    architecture: Mapping[str, Json]
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement(Strict):
    """Everything of one machine; rates in bytes, parameters a second."""

    products: tuple[Product, ...]
    passes: tuple[TimedPass, ...]
    memory_bandwidth: float
    host_adam: float
    disk_write: float
    disk_read: float
    ranks: Count
    date: str
    links: LinkNumbers = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkMeasurement(Strict):
    """Collectives inside a host and between hosts; empty where there is only one of them."""

    inside: LinkNumbers = field(default_factory=dict)
    between: LinkNumbers = field(default_factory=dict)
