"""What a verification makes of what it recorded: samples, ranks, updates, replicas."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from transformers.optimization import Adafactor

from dslm.recipe.load import load_recipe
from dslm.worker.layout.ranks import Layout
from dslm.worker.replicas import _odd_ones, _wrong
from dslm.worker.verify import ranks
from dslm.worker.verify.compare import Step, compare_ranks, compare_samples, difference
from dslm.worker.verify.reference import Found, Reference
from dslm.worker.verify.settings import compare_settings, rate_of
from dslm.worker.verify.switches import switched
from dslm.worker.verify.updates import Updates


def step(**given: Any) -> Step:
    plain: dict[str, Any] = {
        "before": {}, "gradients": {}, "norm": None, "losses": {}, "read": {}, "loss": 0.0,
        "after": {},
    }  # fmt: skip
    return Step(**{**plain, **given})


def names(found: Any) -> list[str]:
    return [f"{each.kind}: {each.name}" for each in found]


def test_samples_are_those_of_the_step_each_once() -> None:
    wanted = Found(losses={1: (1.0, 1), 2: (1.0, 1), 3: (1.0, 1)}, gradients={})
    found = compare_samples(step(read={1: 1, 2: 2, 9: 1}), 1, wanted)
    assert names(found) == [
        "samples: sample 2 is read 2 times",
        "samples: sample 3 is not read",
        "samples: sample 9 is not of this step",
    ]
    assert not compare_samples(step(read={1: 1, 2: 1, 3: 1}), 1, wanted)


@pytest.mark.parametrize(
    ("layout", "draws", "said"),
    [
        (Layout(world_size=4, rank=0), (1, 2, 3, 4), []),
        (Layout(world_size=4, rank=0), (1, 1, 1, 1), ["dropout: all ranks draw the same"]),
        (Layout(world_size=4, rank=0), (1, 2, 3, 1), ["dropout: some ranks draw the same"]),
        (Layout(world_size=4, rank=0, tensor=2), (1, 1, 2, 2), []),
        (
            Layout(world_size=4, rank=0, tensor=2), (1, 2, 3, 4),
            ["dropout: ranks of the same layers draw apart"],
        ),
        (Layout(world_size=2, rank=0, sequence=2), (1, 1), ["dropout: all ranks draw the same"]),
    ],
)  # fmt: skip
def test_ranks_draw_apart_unless_they_share_layers(
    layout: Layout, draws: tuple[int, ...], said: list[str]
) -> None:
    assert names(compare_ranks(step(draws=draws), 1, layout, dropout=True)) == said


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "muon", "adafactor"])
def test_the_rule_of_an_optimizer_is_its_library_s(name: str) -> None:
    recipe = load_recipe("quickstart", [f"optimizer.name={name}", "optimizer.lr=0.01"]).recipe
    given = recipe.optimizer
    weight = torch.nn.Parameter(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    common: dict[str, Any] = {"lr": given.lr, "weight_decay": given.weight_decay}
    adam: dict[str, Any] = {**common, "betas": given.betas, "eps": given.eps}
    kinds: dict[str, Any] = {
        "adamw": lambda: torch.optim.AdamW([weight], **adam),
        "adam": lambda: torch.optim.Adam([weight], **adam),
        "sgd": lambda: torch.optim.SGD([weight], **common),
        "lion": lambda: bitsandbytes.optim.lion.Lion([weight], **common, betas=given.betas),
        "muon": lambda: torch.optim.Muon([weight], **common),
        "adafactor": lambda: Adafactor(
            [weight], **common, scale_parameter=False, relative_step=False
        ),
    }
    muon = frozenset({"w"} if name == "muon" else ())
    optimizer, updates = kinds[name](), Updates(recipe)
    for number in range(1, 4):
        gradient = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        before = {"w": weight.detach().clone()}
        norm = float(gradient.norm())
        weight.grad = gradient * min(1.0, given.grad_clip / (norm + 1e-6))
        optimizer.step()
        after = {"w": weight.detach().clone()}
        made = step(before=before, gradients={"w": gradient}, after=after, muon=muon)
        assert not updates.compare(made, number)
        other = replace(made, after={"w": before["w"] * 0.999})
        fresh = Updates(recipe)
        assert number > 1 or names(fresh.compare(other, number)) == ["update: w"]


def test_lion_may_go_either_way_only_where_there_is_no_gradient() -> None:
    recipe = load_recipe("quickstart", ["optimizer.name=lion", "optimizer.lr=0.01"]).recipe
    before, gradient = torch.ones(4), torch.tensor([0.0, 0.0, 0.01, -0.01])
    decayed = -0.01 * recipe.optimizer.weight_decay * before
    for direction, named in (
        ([1, -1, -1, 1], []), ([0, 0, -1, 1], []), ([2, 0, -1, 1], ["update: w"]),
        ([0, 0, 0, 1], ["update: w"]), ([0, 0, 1, 1], ["update: w"]),
    ):  # fmt: skip
        after = before + decayed + 0.01 * torch.tensor(direction)
        made = step(before={"w": before}, gradients={"w": gradient}, after={"w": after})
        assert names(Updates(recipe).compare(made, 1)) == named


@pytest.mark.parametrize(
    ("parts", "sums", "wrong"),
    [
        ([0, 0, 0], [5, 5, 5], ""),
        ([0, 0, 0], [5, 5, 6], "rank 2"),
        ([0, 1, 0, 1], [5, 7, 5, 7], ""),  # ranks 0 and 2 have the first part
        ([0, 1, 0, 1], [5, 7, 5, 8], "ranks 1, 3"),
        ([0, 1, 0, 1, 0, 1], [5, 7, 5, 8, 5, 7], "rank 3"),
    ],
)
def test_replicas_of_the_same_part_must_agree(
    parts: list[int], sums: list[int], wrong: str
) -> None:
    found = _wrong(torch.tensor(parts)[:, None], torch.tensor(sums)[:, None])
    assert found == ([0] if wrong else [])
    if wrong:
        assert _odd_ones([list(pair) for pair in zip(parts, sums, strict=True)]) == wrong


def test_ranks_that_share_sequences_are_switched_to_ranks_that_do_not() -> None:
    recipe = load_recipe("quickstart", ["parallel.sequence=2"]).recipe
    config = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3,
        "zero_optimization": {"stage": 1}, "sequence_parallel_size": 2,
    }  # fmt: skip
    made = {switch.name: layout for switch, layout in switched((recipe, config))}
    alone, changed = made["shared sequences"]
    assert alone.parallel.sequence == 1
    assert "sequence_parallel_size" not in changed
    # two ranks read samples of their own, of a global batch that stays
    sizes = [changed[key] for key in config if key.startswith(("train", "gradient"))]
    assert sizes[0] * sizes[1] * 2 == 2 * 3
    assert made["ZeRO"][1]["zero_optimization"]["stage"] == 0


def test_what_differs_from_a_later_step_on_is_not_blamed_on_the_first_switch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
    }  # fmt: skip

    def run_layout(given: Any, layout: Any, steps: int) -> ranks.Verdict:
        wrong = steps >= 2 and layout[1]["gradient_accumulation_steps"] > 1
        found = (difference("gradient", "w", 2, 1.0, 0.1, None),) if wrong else ()
        return ranks.Verdict(differences=found)

    monkeypatch.setattr(ranks, "run_layout", run_layout)
    monkeypatch.setattr(ranks, "_told", int)
    given: Any = SimpleNamespace(seconds=1.0, phase=lambda *words: None)
    recipe = load_recipe("quickstart", []).recipe
    cause = ranks.cause_of(given, (recipe, config), step=2, usual=1.0)
    assert cause.name == "gradient accumulation"
    assert cause.tried == ("overlapped communication", "buckets", "gradient accumulation")
    assert not ranks.cause_of(given, (recipe, config), step=2, usual=1e9).tried


def test_the_reference_has_parameters_as_a_layout_in_16_bits_computes_with_them() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    reference = Reference(model, None)  # type: ignore[arg-type]
    assert not reference.take({"weight": torch.tensor([[1.001, 2.0]])}, torch.bfloat16)
    assert model.weight.tolist() == [[1.0, 2.0]]
    assert model.weight.dtype == torch.float32
    assert reference.take({"other": torch.tensor([1])}) == ["other"]


def test_every_rank_s_optimizer_is_set_as_the_recipe_says() -> None:
    recipe = load_recipe("quickstart", ["optimizer.lr=0.01", "schedule.name=linear"]).recipe
    assert [rate_of(recipe, number, 4) for number in range(3)] == [0.01, 0.0075, 0.005]
    good = {
        "learning rate": (0.01,), "beta 1": (0.9,), "beta 2": (0.95,), "eps": (1e-8,),
        "weight decay": (0.1,), "clipping": (1.0,),
    }  # fmt: skip
    wrong = {**good, "learning rate": (0.02,), "eps": (1e-8, 1e-5)}
    assert not compare_settings([good, good], 1, recipe, 0.01)
    found = compare_settings([good, wrong], 1, recipe, 0.01)
    assert names(found) == ["learning rate: rank 1", "optimizer: rank 1: eps 1e-05"]
    assert found[0].ratio == 2
