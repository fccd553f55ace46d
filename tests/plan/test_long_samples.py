"""Plans of long samples: each saving is counted, and what `--longest` says of it."""

from __future__ import annotations

import pytest

from dslm.cluster.devices import device_named
from dslm.cluster.hosts import Cluster, Host
from dslm.decide.checks.base import Verb
from dslm.decide.checks.every import Asking
from dslm.decide.job import Job, planned_document
from dslm.decide.longest import reach_document
from dslm.decide.ready import ready_job
from dslm.plan.ledger import Moment, Place
from dslm.plan.memory import Memory
from dslm.recipe.load import load_recipe

LENGTH, LAYERS, HIDDEN, VOCABULARY = 65536, 16, 2048, 128256  # of Llama 3.2 1B
RECOMPUTED = "model.activation_checkpointing=true"


def _job(*changes: str, gpus: int = 1, length: int = LENGTH, recipe: str = "llama-3.2-1b") -> Job:
    cluster = Cluster(hosts=(Host("w1", gpus),), device=device_named("h100-80gb"))
    given = [f"data.sequence_length={length}", "batch.micro_size=1", "data.train=stdlib", *changes]
    return ready_job(
        load_recipe(recipe, given), cluster, Asking(verb=Verb.PLAN, here=False, force=True)
    )


def _memory(*changes: str, gpus: int = 1, length: int = LENGTH) -> Memory:
    memory = _job(*changes, gpus=gpus, length=length).plan.choice.memory
    assert memory is not None
    return memory


def _peak(*changes: str, gpus: int = 1, length: int = LENGTH) -> int:
    memory = _memory("parallel.zero_stage=3", *changes, gpus=gpus, length=length)
    return max(memory.phases[name] for name in ("forward", "backward"))


def test_each_saving_is_counted() -> None:
    whole, both = _peak(RECOMPUTED), _peak("model.long_context=true")
    loss = _peak(RECOMPUTED, "model.tiled_loss=true")
    # logits in bf16, in fp32, and gradients of both; of tiles 256 tokens
    assert whole - loss > 8 * LENGTH * VOCABULARY
    mlp = _peak(RECOMPUTED, "model.tiled_loss=true", "model.tiled_mlp=true")
    wide = 2 * LENGTH * HIDDEN * 4  # bytes of what is in an MLP
    assert loss - mlp > wide
    away = _memory(RECOMPUTED, "model.tiled_loss=true", "model.offload_activations=true")
    inputs = LAYERS * LENGTH * HIDDEN * 2  # of each layer, in bf16
    assert [t.bytes for t in away.terms if t.name == "activations away"] == [inputs]
    assert all(t.place is Place.PINNED for t in away.terms if t.name == "activations away")
    assert away.host_items["pinned"] >= inputs
    kept = max(away.phases[name] for name in ("forward", "backward"))
    assert loss - kept > 0.8 * inputs
    assert both < min(mlp, kept)
    evaluation = [
        term.bytes
        for term in _memory("model.long_context=true").terms
        if term.kind == "activations" and Moment.EVALUATION in term.lives
    ]
    assert 0 < sum(evaluation) < LENGTH * VOCABULARY


def test_in_tiles_a_longer_sample_costs_little_more() -> None:
    """Of a token stay the input of a layer, its gradient and what attention reads and writes."""
    short, long = (_peak("model.long_context=true", length=n) for n in (LENGTH // 4, LENGTH))
    assert long - short < 0.75 * LENGTH * HIDDEN * 2 * 30
    plain = _peak(RECOMPUTED, length=LENGTH) - _peak(RECOMPUTED, length=LENGTH // 4)
    assert plain > 10 * (long - short)


def test_ranks_share_long_samples_where_that_is_left_open() -> None:
    alone = _job("model.long_context=true", "parallel.sequence=1", gpus=8, length=131072)
    shared = _job("model.long_context=true", "parallel.sequence=auto", gpus=8, length=131072)
    assert shared.plan.strategy.sequence_parallel >= alone.plan.strategy.sequence_parallel == 1
    # a tile is as large on each rank, whoever has the others
    two, one = (
        _peak("model.long_context=true", f"parallel.sequence={n}", gpus=2, length=131072)
        for n in (2, 1)
    )
    assert 0.45 * one < two < one


def test_the_longest_sequence_is_told_with_each_saving_and_without() -> None:
    job = _job(length=4096)
    found = reach_document(job, lambda detail: None)
    assert found["with_nothing"] < found["with_all"]  # type: ignore[operator]
    without = found["without"]
    assert isinstance(without, dict)
    assert set(without) == {
        "model.tiled_mlp", "model.tiled_loss", "model.offload_activations",
        "model.activation_checkpointing", "parallel.sequence",
    }  # fmt: skip
    assert all(tokens <= found["with_all"] for tokens in without.values())


@pytest.mark.parametrize(
    ("kind", "key"), [("gpt2", "model.tiled_mlp"), ("cohere", "model.tiled_loss")]
)
def test_a_plan_says_what_a_model_cannot_do(kind: str, key: str) -> None:
    sizes = {"model_type": kind, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 1024}
    layers = {"num_hidden_layers": 2, "intermediate_size": 128, "logit_scale": 0.5}
    architecture = str({**sizes, **layers}).replace("'", '"')
    job = _job(
        f"model.architecture={architecture}", "model.long_context=true", length=256,
        recipe="quickstart",
    )  # fmt: skip
    found = planned_document(job)["long_samples"]
    assert isinstance(found, dict)
    assert kind in found["left_out"][key]
    assert key not in found["on"]
    assert getattr(job.recipe.model, key.removeprefix("model.")) is False
