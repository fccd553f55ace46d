"""What a model in few bits takes: its matrices packed, their scales, one of them at a time whole.

Adapters are trained beside it (`quantize`); the rest of the model stays as it is. Sources: QLoRA
(arXiv 2305.14314), section 3, and bitsandbytes' functional.py and autograd/_functions.py.
"""

from __future__ import annotations

import math

from dslm.plan.ledger import LAYERS, PASS, RUN, Moment, Term, at
from dslm.plan.states import FP32
from dslm.plan.strategy import Strategy
from dslm.profile.value import ParameterGroup, Profile
from dslm.recipe.schema import Recipe

GATHERED = "gathered parameters"  # stage 3's term of what is whole at a time
PACKED = {"nf4": 0.5, "int8": 1.0}  # bytes of an element
_BLOCK, _BLOCKS = 64, 256  # elements that share an 8-bit scale, scales that share one of 32 bits
_TABLE = 256 * FP32  # what the 8-bit scales of a matrix stand for


def matrices(profile: Profile) -> list[ParameterGroup]:
    """The parameters that are packed: frozen matrices of layers; not those of experts in one."""
    return [
        group
        for group in profile.parameters
        if group.layer and not (group.trained or group.adapter) and len(group.shape) == 2
    ]


def elements_less(recipe: Recipe, profile: Profile) -> int:
    """How many elements of the training's number format a model takes less, once it is packed."""
    if recipe.quantize is None:
        return 0
    total = sum(group.total for group in matrices(profile))
    return int(total * (1 - PACKED[recipe.quantize] / _element(recipe)))


def few_bits_terms(
    recipe: Recipe, profile: Profile, strategy: Strategy, states: tuple[Term, ...]
) -> list[Term]:
    """Return what comes along with packed matrices, beside the terms of the stage."""
    if recipe.quantize is None:
        return []
    packed = matrices(profile)
    largest = max((math.prod(group.shape) for group in packed), default=0)
    terms = [
        Term(
            name="scales", bytes=sum(_scales(recipe.quantize, group) for group in packed),
            lives=RUN | {Moment.INIT}, kind="parameters",
            source="arXiv 2305.14314, section 3; no stage partitions them",
        ),
        Term(
            name="a matrix made whole", bytes=_element(recipe) * largest,
            lives=LAYERS | {Moment.FORWARD, Moment.EVALUATION},
            source="autograd/_functions.py, MatMul4Bit and MatMul8bitLt",
        ),
    ]  # fmt: skip
    if strategy.zero_stage == 3:
        # transformers' get_init_context: a quantised model isn't partitioned as it is loaded
        less = elements_less(recipe, profile) - profile.largest  # the one that is parted next
        whole = _element(recipe) * (profile.frozen + profile.trained - less)
        terms.append(
            Term(
                name="the model before it is partitioned",
                bytes=max(0, whole - at(states, Moment.INIT)),
                lives=frozenset({Moment.INIT}), source="modeling_utils.py, get_init_context",
            )
        )  # fmt: skip
    if strategy.zero_stage == 3 and not strategy.activation_checkpointing:
        # MatMul4Bit.forward keeps the gathered matrix itself, not what DeepSpeed could take back
        gathered = sum(one.bytes for one in states if one.name == GATHERED)
        elements = sum(group.total for group in packed) - elements_less(recipe, profile)
        terms.append(
            Term(
                name="packed matrices kept for the backward pass",
                bytes=max(0, _element(recipe) * elements - gathered), lives=PASS,
                source="autograd/_functions.py, ctx.tensors",
            )
        )  # fmt: skip
    return terms


def _scales(kind: str, group: ParameterGroup) -> int:
    if kind == "int8":
        return group.count * FP32 * group.shape[0]  # one a row
    blocks = -(-group.size // _BLOCK)
    return group.count * (blocks + FP32 * -(-blocks // _BLOCKS) + _TABLE)


def _element(recipe: Recipe) -> int:
    return FP32 if recipe.precision == "fp32" else 2
