"""Faults of layouts, planted in the ranks of one verification: what each is, and what names it."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from tests.worker.planted_settings import SETTINGS
from tests.worker.planting import (
    ALBERT,
    BF16,
    LORA,
    MISTRAL,
    MOE,
    Fault,
    after_step,
    batches,
    engine_gradients,
    gradients,
    on_engine,
    on_trainer,
    shared,
    stage,
)


def _drop_last_micro_batch(trainer: Any, rank: int) -> None:
    usual, count = trainer.compute_loss, [0]

    def compute_loss(*given: Any, **more: Any) -> Any:
        found = usual(*given, **more)
        count[0] += 1
        if count[0] % trainer.args.gradient_accumulation_steps:
            return found
        dropped = lambda loss: loss.detach() + 0.0 * loss  # noqa: E731
        return (dropped(found[0]), found[1]) if isinstance(found, tuple) else dropped(found)

    trainer.compute_loss = compute_loss


def _mean_of_means(trainer: Any, rank: int) -> None:
    usual = trainer.get_batch_samples

    def get_batch_samples(*given: Any) -> Any:
        return usual(*given)[0], None

    trainer.get_batch_samples = get_batch_samples


def _stale(trainer: Any, rank: int) -> None:
    kept: list[torch.Tensor] = []

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        kept.append(gradient.clone())
        return kept[-2] if len(kept) > 1 else torch.zeros_like(gradient)

    dict(trainer.model.named_parameters())["model.layers.1.mlp.up_proj.weight"].register_hook(hook)


def _clip(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    return gradient * min(1.0, 0.01 / (float(gradient.norm()) + 1e-12))


def _first_expert(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    return torch.cat([2 * gradient[:1], gradient[1:]])


def _leak(batch: dict[str, torch.Tensor], rank: int) -> None:
    length = batch["input_ids"].shape[1]
    batch["position_ids"] = torch.arange(length).expand_as(batch["input_ids"]).contiguous()


def _late_positions(batch: dict[str, torch.Tensor], rank: int) -> None:
    if rank:
        half = batch["position_ids"].shape[1] // 2
        batch["position_ids"][:, half:] += (batch["position_ids"][:, half:] > 0).long()


def _shifted(batch: dict[str, torch.Tensor], rank: int) -> None:
    batch["labels"] = batch["labels"].roll(1, 1)


def _no_padding_mask(batch: dict[str, torch.Tensor], rank: int) -> None:
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])


def _untie(trainer: Any, rank: int) -> None:
    trainer.model.lm_head.weight = torch.nn.Parameter(trainer.model.lm_head.weight.detach().clone())


def _freeze(trainer: Any, rank: int) -> None:
    for parameter in trainer.model.model.layers[1].mlp.parameters():
        parameter.requires_grad_(False)


def _not_loaded(trainer: Any, rank: int) -> None:
    torch.nn.init.normal_(trainer.model.model.layers[0].self_attn.q_proj.weight, std=0.02)


def _lora_scale(trainer: Any, rank: int) -> None:
    for module in trainer.model.modules():
        if hasattr(module, "scaling") and isinstance(module.scaling, dict):
            module.scaling = {name: 2 * value for name, value in module.scaling.items()}


def _same_dropout(trainer: Any, rank: int) -> None:
    usual = trainer.get_batch_samples

    def get_batch_samples(*given: Any) -> Any:
        torch.manual_seed(7)
        return usual(*given)

    trainer.get_batch_samples = get_batch_samples


def _repeated_sample(trainer: Any, rank: int) -> None:
    usual = type(trainer.train_dataset).__getitem__
    first: list[int] = []

    def item(self: Any, place: int) -> Any:
        first.append(place)
        return usual(self, first[0] if rank == 0 and len(first) == 2 else place)

    kind = type("Repeating", (type(trainer.train_dataset),), {"__getitem__": item})
    trainer.train_dataset.__class__ = kind


def _rates(engine: Any, rank: int) -> None:
    if rank:
        for group in engine.optimizer.param_groups:
            group["lr"] *= 2


def _betas(engine: Any, rank: int) -> None:
    for group in engine.optimizer.param_groups:
        group["betas"] = (0.5, group["betas"][1])


def _decay_norms(found: dict[str, Any], rank: int) -> None:
    for name, parameter in found.items():
        if name != "before" and "norm" in name:
            parameter.mul_(1 - 1e-4)


def _skip(found: dict[str, Any], rank: int) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    found[name].copy_(found["before"][name])


def _flip(found: dict[str, Any], rank: int) -> None:
    if rank:
        found["model.norm.weight"].data.view(torch.int32)[3] ^= 1


def _twice_on_one(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    return gradient * 2 if rank else gradient


def _no_decay(engine: Any, rank: int) -> None:
    for group in engine.optimizer.param_groups:
        group["weight_decay"] = 0.0


def _no_clipping(engine: Any, rank: int) -> None:
    engine.optimizer.clip_grad = 0.0


def _never_cleared(engine: Any, rank: int) -> None:
    """An update that still has the gradient of the last step in it."""
    kept: dict[str, torch.Tensor] = {}
    usual = engine.step
    names = dict(engine.module.named_parameters())
    parameter = names["model.layers.1.mlp.gate_proj.weight"]

    def step(*given: Any, **more: Any) -> Any:
        last = engine.is_gradient_accumulation_boundary()
        if last and "gradient" in kept:
            parameter.grad.add_(kept["gradient"])
        if last:
            kept["gradient"] = parameter.grad.clone()
        return usual(*given, **more)

    engine.step = step


def _own_shard_again(trainer: Any, rank: int) -> None:
    """Every rank reads what rank 0 reads."""
    usual = trainer.get_train_dataloader

    def get_train_dataloader() -> Any:
        loader = usual()
        object.__setattr__(trainer.sampler.share, "rank", 0)
        return loader

    trainer.get_train_dataloader = get_train_dataloader


def _sees_the_future(trainer: Any, rank: int) -> None:
    attention: Any = importlib.import_module("dslm.worker.layout.attention")
    usual = attention._together

    def together(query: Any, key: Any, value: Any, mask: Any, *rest: Any) -> Any:
        length = query.shape[2]
        all_of_it = torch.ones(length, length, dtype=torch.bool)
        return usual(query, key, value, all_of_it if mask is None else mask, *rest)

    if rank:
        attention._together = together


def _no_window(trainer: Any, rank: int) -> None:
    attention: Any = importlib.import_module("dslm.worker.layout.attention")
    attention._band = lambda bucket, window: None


def _padding_learnt(batch: dict[str, torch.Tensor], rank: int) -> None:
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == -100, 0)


def _half_of_the_light(batch: dict[str, torch.Tensor], rank: int) -> None:
    if rank:
        batch["pixel_values"] = batch["pixel_values"] * 0.5


def _documents_of_mlm(batch: dict[str, torch.Tensor], rank: int) -> None:
    mask = batch["attention_mask"]
    batch["attention_mask"] = torch.ones_like(mask) if mask.dtype == torch.bool else mask * 0


def _base_is_trained(trainer: Any, rank: int) -> None:
    for name, parameter in trainer.model.named_parameters():
        if "layers.0.mlp.up_proj.base_layer.weight" in name:
            parameter.requires_grad_(True)


def _cut_off(trainer: Any, rank: int) -> None:
    """The head of a tied table teaches it nothing."""
    model = trainer.model
    head = model.get_output_embeddings()

    def forward(states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(states, head.weight.detach(), head.bias)

    head.forward = forward


def _once(trainer: Any, rank: int) -> None:
    """Of a module that is used twice, the second use teaches nothing."""
    layer = trainer.model.albert.encoder.albert_layer_groups[0].albert_layers[0]
    usual, calls = layer.forward, [0]

    def forward(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] % trainer.model.config.num_hidden_layers:
            return usual(*given, **more)
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        found = usual(*given, **more)
        for parameter in layer.parameters():
            parameter.requires_grad_(True)
        return found

    layer.forward = forward


def _drift(found: dict[str, Any], rank: int) -> None:
    if rank:
        name = next(name for name in found if "input_layernorm" in name)
        found[name].add_(1e-3)


FAULTS: dict[str, Fault] = {
    "gradients scaled by the ranks": Fault(
        plant=on_trainer(gradients(lambda g, rank: g * 2)), kind="gradient", settings=stage(2),
    ),
    "the last micro batch dropped": Fault(
        plant=on_trainer(_drop_last_micro_batch), kind="gradient", settings=stage(1),
    ),
    "one parameter never synchronised": Fault(
        plant=on_trainer(gradients(lambda g, rank: g * 0 if rank else g * 2, "layers.0.mlp.up")),
        kind="gradient", names="layers.0.mlp.up", settings=stage(2),
    ),
    "a mean of means": Fault(
        plant=on_trainer(_mean_of_means), kind="gradient", recipe="quickstart-sft",
        settings=stage(2),
    ),
    "a leak between packed documents": Fault(
        plant=on_trainer(batches(_leak)), kind="loss", names="sample", settings=stage(1),
    ),
    "an untied table": Fault(
        plant=on_trainer(_untie), kind="parameters", names="lm_head.weight", settings=stage(1),
    ),
    "the same dropout on all ranks": Fault(
        plant=on_trainer(_same_dropout), kind="dropout", recipe="quickstart-mlm",
        settings=stage(1),
    ),
    "a frozen layer": Fault(
        plant=on_trainer(_freeze), kind="gradient", names="layers.1.mlp", settings=stage(2),
    ),
    "a shifted label": Fault(
        plant=on_trainer(batches(_shifted)), kind="loss", settings=stage(0),
    ),
    "late positions on one rank": Fault(
        plant=on_trainer(batches(_late_positions)), kind="loss", settings=stage(1),
    ),
    "an expert's gradient scaled": Fault(
        plant=on_trainer(gradients(lambda g, rank: g * 2, "experts")), kind="gradient",
        names="experts", settings={**stage(2), **MOE},
    ),
    "an expert's gradient scaled, in 16 bits": Fault(
        plant=on_trainer(gradients(lambda g, rank: g * 1.5, "layers.1.mlp.experts")),
        kind="gradient", names="layers.1.mlp.experts", settings={**stage(2), **MOE, **BF16},
    ),
    "one of several experts scaled, in 16 bits": Fault(
        plant=on_trainer(gradients(_first_expert, "layers.0.mlp.experts.down")),
        kind="gradient", names="layers.0.mlp.experts.down", settings={**stage(3), **MOE, **BF16},
    ),
    "a router that is not taught on one rank, in 16 bits": Fault(
        plant=on_trainer(gradients(lambda g, rank: g * (not rank), "layers.0.mlp.gate.")),
        kind="gradient", names="layers.0.mlp.gate.", settings={**stage(1), **MOE, **BF16},
    ),
    "clipping before the sum": Fault(
        plant=on_trainer(gradients(_clip)), kind="gradient", settings=stage(2),
    ),
    "a stale bucket": Fault(
        plant=on_trainer(_stale), kind="gradient", names="layers.1.mlp.up_proj",
        settings=stage(2),
    ),
    "a LoRA scale off by two": Fault(
        plant=on_trainer(_lora_scale), kind="gradient", names="lora_",
        settings={**stage(2), **LORA},
    ),
    "decay on norms": Fault(
        plant=on_engine(after_step(_decay_norms)), kind="update", names="norm",
        settings=stage(0),
    ),
    "a wrong learning rate on one rank": Fault(
        plant=on_engine(_rates), kind="learning rate", names="rank 1", settings=stage(1),
    ),
    "gradients summed in bf16": Fault(
        plant=on_trainer(gradients(lambda g, rank: g.bfloat16().to(g.dtype))), kind="gradient",
        settings=stage(2),
    ),
    "a flipped bit in one replica": Fault(
        plant=on_engine(after_step(_flip)), kind="replicas", names="model.norm.weight",
        settings=stage(0),
    ),
    "gradients divided by the accumulation steps twice": Fault(
        plant=on_trainer(gradients(lambda g, rank: g / 2)), kind="gradient", settings=stage(3),
    ),
    "weights that were not loaded": Fault(
        plant=on_trainer(_not_loaded), kind="parameters", names="layers.0.self_attn.q_proj",
        settings=stage(2),
    ),
    "a parameter that is never updated": Fault(
        plant=on_engine(after_step(_skip)), kind="update", names="layers.0.mlp.down_proj",
        settings=stage(0),
    ),
    "moments of another length": Fault(
        plant=on_engine(_betas), kind="optimizer", names="beta 1", settings=stage(1),
    ),
    "padding that is seen": Fault(
        plant=on_trainer(batches(_no_padding_mask)), kind="gradient",
        recipe="quickstart-classify",
        settings={**stage(2), "data.max_documents": 2000},
    ),
    "a sample that is read twice": Fault(
        plant=on_trainer(_repeated_sample), kind="samples", names="read 2 times",
        settings=stage(1),
    ),
    "a shard that two ranks read": Fault(
        plant=on_trainer(_own_shard_again), kind="samples", names="not read", settings=stage(3),
    ),
    "weight decay left out": Fault(
        plant=on_engine(_no_decay), kind="update", settings={**stage(2), "optimizer.lr": 0.01},
    ),
    "clipping left out": Fault(
        plant=on_engine(_no_clipping), kind="update",
        settings={**stage(2), "optimizer.name": "sgd", "optimizer.grad_clip": 0.01},
    ),
    "a gradient that is never cleared": Fault(
        plant=on_engine(_never_cleared), kind="update", names="layers.1.mlp.gate_proj",
        settings=stage(0),
    ),
    "a rank whose tokens see the future": Fault(
        plant=on_trainer(_sees_the_future), kind="loss", names="sample", settings=stage(1),
    ),
    "a window of attention left out": Fault(
        plant=on_trainer(_no_window), kind="loss", settings={**stage(2), **MISTRAL},
    ),
    "padding that is learnt": Fault(
        plant=on_trainer(batches(_padding_learnt)), kind="loss", recipe="quickstart-seq2seq",
        settings=stage(2),
    ),
    "images that one rank scales otherwise": Fault(
        plant=on_trainer(batches(_half_of_the_light)), kind="loss", recipe="quickstart-vision",
        settings=stage(1),
    ),
    "documents of a masked model that see each other": Fault(
        plant=on_trainer(batches(_documents_of_mlm)), kind="gradient", recipe="quickstart-mlm",
        settings=stage(1),
    ),
    "a base that is trained beside its adapters": Fault(
        plant=on_trainer(_base_is_trained), kind="parameters", names="up_proj.base_layer",
        settings={**stage(1), **LORA},
    ),
    "a tied head that teaches nothing": Fault(
        plant=on_trainer(_cut_off), kind="gradient", names="embed_tokens", settings=stage(2),
    ),
    "a shared module of which one use is lost": Fault(
        plant=on_trainer(_once), kind="gradient", names="albert_layers", recipe="quickstart-mlm",
        settings={**stage(2), **ALBERT},
    ),
    "wrong positions in one part of a sequence": Fault(
        plant=on_trainer(batches(_late_positions)), kind="loss",
        settings={**stage(2), **shared("sequence")},
    ),
    "a rank's part of a layer scaled": Fault(
        plant=on_engine(engine_gradients(_twice_on_one, "layers.0.mlp.up")),
        kind="gradient", names="layers.0.mlp.up", settings={**stage(1), **shared("tensor")},
    ),
    "norms that drift apart under shared layers": Fault(
        plant=on_engine(after_step(_drift)), kind="replicas", names="input_layernorm",
        settings={**stage(0), **shared("tensor")},
    ),
    "one rank's experts scaled": Fault(
        plant=on_engine(engine_gradients(_twice_on_one, "experts")),
        kind="gradient", names="experts", settings={**stage(2), **MOE, **shared("expert")},
    ),
    **SETTINGS,
}  # fmt: skip


def plant(rank: int) -> None:
    """Plant the fault that the environment names."""
    import os

    FAULTS[os.environ["DSLM_TEST_FAULT"]].plant(rank)
