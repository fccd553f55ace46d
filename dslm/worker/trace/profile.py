"""Make the profile of a model: trace small passes, fit them, prove the fit on other shapes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from dslm.profile.levels import levels
from dslm.profile.value import STAGE_3, PassProfile, Profile, Proof
from dslm.recipe.packs import BY_MASK, PACKED_TASKS
from dslm.worker.layout.apart import kept_apart
from dslm.worker.layout.tiles_proof import LOSS, MLP, not_in_tiles
from dslm.worker.trace.fit import fitted
from dslm.worker.trace.model import AUTO_CLASSES, Traced, build, config_of
from dslm.worker.trace.parameters import groups_of
from dslm.worker.trace.passes import PassTrace, Tracer

_LENGTHS = (256, 512, 1024)
_LONG = (1024, 2048, 4096)  # of models that pad shorter ones, or work otherwise with them
_PROBED = (64, 128)
_LOOPING = (128, 192, 256)  # of models that work piece by piece: a single one is made otherwise
_PIECEWISE = (8, 16, 24)  # … token by token
_PER_TOKEN = 8  # operations a token, from which on it is token by token
_SAMPLES = (2, 3)
_EXACT = 1e-3
_MODES = ("plain", "recompute")


class _Run:
    """Traces of one model, anew without skipped layers where skipping doesn't work."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.left_out = left_out(request)
        names = [key.removeprefix("model.") for key in self.left_out]
        request = {name: value for name, value in request.items() if name not in names}
        self.request = request
        self.apart = apart(request)
        self.traced = self._built()
        self.parameters = groups_of(self.traced)
        self.limit = _positions(self.traced)
        self.tracer = self._tracer()

    def _built(self) -> Traced:
        return build(self.request, packed=self.apart.get(BY_MASK) is not False)

    def _tracer(self, *, skip: bool = True, meta: bool = True) -> Tracer:
        return Tracer(self.traced, skip=skip, on_cpu=self.request["device"] == "cpu", meta=meta)

    def traced_somehow(self) -> tuple[dict[str, PassProfile], tuple[Proof, ...]]:
        """Every mode, and the proofs: in the quickest way that the model's code goes along with.

        Layers can't be skipped where a later one asks for what they did; and on the meta device
        nothing has a value, while beside fake tensors token ids and masks have theirs.
        """
        first: Exception | None = None
        for skip, meta in ((True, True), (True, False), (False, False)):
            if first is not None:
                self.traced = self._built()
                self.tracer = self._tracer(skip=skip, meta=meta)
            try:
                return self.passes()
            except Exception as failure:  # noqa: BLE001 - a model's code can fail in any way
                first = first or failure
                last = failure
        raise last

    def passes(self) -> tuple[dict[str, PassProfile], tuple[Proof, ...]]:
        """Trace every mode, and the proofs."""
        lengths = self._lengths()
        found, proofs = self._passes_of(lengths)
        if _worst(proofs) > _EXACT and lengths == _LENGTHS and self._takes(_LONG[-1]):
            long, again = self._passes_of(_LONG)
            if _worst(again) < _worst(proofs):
                short = [self._proof(long, (1, lengths[0]), mode) for mode in self._modes()]
                return long, (*again, *short)
        return found, proofs

    def _passes_of(
        self, lengths: tuple[int, ...]
    ) -> tuple[dict[str, PassProfile], tuple[Proof, ...]]:
        """Trace passes of such lengths, and others to prove what was made of them."""
        shapes = [(b, t) for b in _SAMPLES for t in lengths]
        found: dict[str, PassProfile] = {}
        proofs: list[Proof] = []
        other = _other(lengths)
        for mode in self._modes():
            made = self._fitted(shapes, mode)
            proofs.append(self._proof(made, other, mode))
            one = self._proof(made, (1, lengths[len(lengths) // 2]), mode)
            if one.off > _EXACT and len(lengths) > 1:
                # what is of size one needs no copy: one sample has polynomials of its own
                single = self._fitted([(1, t) for t in lengths], mode)
                made |= {f"{name} single": each for name, each in single.items()}
                one = self._proof(single, (1, other[1]), mode)
            proofs.append(one)
            found |= made
        evaluated = [self.tracer.evaluate(b, t) for b, t in shapes]
        found["evaluation"] = fitted(evaluated, shapes, self.tracer.layers)
        return found, tuple(proofs)

    def _fitted(self, shapes: list[tuple[int, int]], mode: str) -> dict[str, PassProfile]:
        """Return the pass of a mode; and that of stage 3, where it keeps more."""
        traces = self._traces(shapes, mode)
        return {
            name: fitted(each, shapes, self.tracer.layers) for name, each in _stages(mode, traces)
        }

    def _traces(self, shapes: list[tuple[int, int]], mode: str) -> list[PassTrace]:
        return [self.tracer.run(b, t, recompute=mode == "recompute") for b, t in shapes]

    def _proof(self, made: dict[str, PassProfile], shape: tuple[int, int], mode: str) -> Proof:
        # of the model as it was traced: the layers that were skipped are in both or in neither
        off = 0.0
        for name, traces in _stages(mode, self._traces([shape], mode)):
            seen = fitted(traces, [shape], self.tracer.layers)
            both = zip(
                _highest(made.get(name, made[mode]), shape), _highest(seen, shape), strict=True
            )
            off = max(off, *(abs(mine - true) / max(true, 1.0) for mine, true in both))
        return Proof(samples=shape[0], length=shape[1], recompute=mode == "recompute", off=off)

    def _lengths(self) -> tuple[int, ...]:
        if self.traced.task == "vision":
            return (1,)
        limit = self.limit or _LENGTHS[-1]
        if limit < _LENGTHS[-1]:
            lengths: tuple[int, ...] = (limit // 4, limit // 2, limit // 4 * 3)
        else:
            lengths = _LENGTHS
        short, long = (min(t, limit) for t in _PROBED)
        few, many = (_operations(self.tracer.evaluate(1, t)) for t in (short, long))
        if many <= few:  # fewer: the short one was padded to a block
            return lengths
        return _PIECEWISE if many - few > _PER_TOKEN * (long - short) else _LOOPING

    def _takes(self, length: int) -> bool:
        return self.limit is None or length <= self.limit

    def _modes(self) -> tuple[str, ...]:
        return _MODES if self.traced.base.supports_gradient_checkpointing else _MODES[:1]


def _stages(mode: str, traces: list[PassTrace]) -> Iterator[tuple[str, list[PassTrace]]]:
    """Return the traces of a mode; and what they are under stage 3, where it keeps more."""
    yield mode, traces
    if any(trace.holds for trace in traces):
        yield mode + STAGE_3, [trace.under_stage_3() for trace in traces]


def _other(lengths: tuple[int, ...]) -> tuple[int, int]:
    """Samples, and a length that isn't traced."""
    if len(lengths) == 1:
        return 5, lengths[0]
    between = lengths[0] + lengths[1]
    return 4, between if between not in lengths else lengths[0] + lengths[2]


def _worst(proofs: Iterable[Proof]) -> float:
    return max(proof.off for proof in proofs)


def _operations(trace: PassTrace) -> int:
    return sum(len(stretch.work) for stretch in trace.forward)


def _highest(one: PassProfile, shape: tuple[int, int]) -> tuple[float, float, float]:
    """Kept, and the highest of forward and backward."""
    found = levels(one, *shape)
    return found.kept, found.forward, max(level.let_go for level in found.backward)


def profile(request: Mapping[str, Any]) -> Profile:
    """The profile of a request; without passes, and with the reason, where it can't be traced."""
    run = _Run(request)
    passes: dict[str, PassProfile] = {}
    proofs: tuple[Proof, ...] = ()
    why = ""
    try:
        passes, proofs = run.traced_somehow()
    except Exception as failure:  # noqa: BLE001 - a model's code can fail in any way
        said = str(failure).strip().splitlines()
        why = f"{type(failure).__name__}: {said[0] if said else 'no reason given'}"
    config = run.traced.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = _number(text, "num_attention_heads")
    head = next((g for g in run.parameters if g.head), None)
    return Profile(
        model_type=str(config.model_type),
        parameters=run.parameters,
        layers=len(run.tracer.layers),
        hidden_size=run.tracer.width or _number(text, "hidden_size") or 1,
        vocab_size=_number(text, "vocab_size"),
        heads=heads,
        kv_heads=_number(text, "num_key_value_heads") or heads,
        max_positions=run.limit,
        tied=head is not None and head.table,
        attention=run.traced.attention,
        element=run.parameters[0].element if run.parameters else 0,
        passes=passes,
        proofs=proofs,
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        fixed_length=0 if request["task"] != "vision" else 1,
        drops=run.tracer.drops,
        why=why,
        apart=run.apart,
        left_out=run.left_out,
    )


def apart(request: Mapping[str, Any]) -> dict[str, bool]:
    """Return whether a model keeps the documents of a pack apart; see `dslm.recipe.packs`."""
    task = request["task"]
    if task not in PACKED_TASKS:
        return {}
    return kept_apart(config_of(request["architecture"]), AUTO_CLASSES[task])


def left_out(request: Mapping[str, Any]) -> dict[str, str]:
    """Return what is asked for in tiles of tokens and can't be, and why."""
    asked = tuple(key for key in (MLP, LOSS) if request.get(key.removeprefix("model.")))
    if not asked:
        return {}
    return not_in_tiles(config_of(request["architecture"]), AUTO_CLASSES[request["task"]], asked)


def _number(config: Any, name: str) -> int:
    try:
        value = getattr(config, name, None)
    except Exception:  # noqa: BLE001 - some configs refuse what differs between layers
        return 0
    if isinstance(value, list | tuple) and value:  # a number a stage or a layer
        value = min(v for v in value if isinstance(v, int)) if isinstance(value[0], int) else None
    return int(value) if isinstance(value, int | float) else 0


def _positions(traced: Traced) -> int | None:
    """The longest sequence that a model takes; None: no limit that it names."""
    config = traced.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = _number(text, "max_position_embeddings") or _number(text, "max_seq_len") or None
    for name, module in traced.model.named_modules():
        table = isinstance(module, nn.Embedding) and "position" in name.rsplit(".", 1)[-1]
        if table and limit and module.num_embeddings == limit and module.padding_idx is not None:
            # positions are counted from the padding index on
            return limit - int(module.padding_idx) - 1
    return limit
