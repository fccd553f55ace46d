"""How faults are planted in the ranks of one verification, and models to plant them into.

A plant changes what the layout does, never the reference: the trainer, its engine, its batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dslm.worker.verify import ranks
from dslm.worker.verify.record import Recorder

Change = Callable[[Any, int], None]  # of a trainer, on a rank


def on_trainer(change: Change) -> Callable[[int], None]:
    """Change a trainer before it starts."""

    def plant(rank: int) -> None:
        module: Any = ranks
        usual = module.assemble

        def assemble(*given: Any) -> Any:
            training = usual(*given)
            change(training.trainer, rank)
            return training

        module.assemble = assemble
        ranks._SECONDS = 0.0  # what is wrong is asked here, not why

    return plant


def on_engine(change: Change) -> Callable[[int], None]:
    """Change the engine of a trainer that starts."""

    def plant(rank: int) -> None:
        usual = Recorder.on_train_begin

        def on_train_begin(self: Any, *given: Any, **more: Any) -> None:
            change(self._trainer.model_wrapped, rank)
            usual(self, *given, **more)

        Recorder.on_train_begin = on_train_begin  # type: ignore[method-assign]
        ranks._SECONDS = 0.0

    return plant


def gradients(change: Callable[[torch.Tensor, int], torch.Tensor], part: str = "") -> Change:
    """Change the gradient of each micro batch, of the parameters whose name holds a part."""

    def change_trainer(trainer: Any, rank: int) -> None:
        for name, parameter in trainer.model.named_parameters():
            if part in name and parameter.requires_grad:
                parameter.register_hook(lambda gradient: change(gradient, rank))

    return change_trainer


def batches(change: Callable[[dict[str, torch.Tensor], int], None]) -> Change:
    def change_trainer(trainer: Any, rank: int) -> None:
        usual = trainer._collate

        def collate(samples: Any) -> Any:
            batch = usual(samples)
            change(batch, rank)
            return batch

        trainer._collate = collate

    return change_trainer


def after_step(change: Callable[[dict[str, Any], int], None]) -> Change:
    def change_engine(engine: Any, rank: int) -> None:
        usual = engine.step

        def step(*given: Any, **more: Any) -> Any:
            before = {n: p.detach().clone() for n, p in engine.module.named_parameters()}
            done = usual(*given, **more)
            changed = dict(engine.module.named_parameters())
            if engine.is_gradient_accumulation_boundary():
                with torch.no_grad():
                    change(changed | {"before": before}, rank)
            return done

        engine.step = step

    return change_engine


def engine_gradients(change: Callable[[torch.Tensor, int], torch.Tensor], part: str = "") -> Change:
    """The same of the parameters that DeepSpeed made, where ranks share layers or experts."""

    def change_engine(engine: Any, rank: int) -> None:
        for name, parameter in engine.module.named_parameters():
            if part in name and parameter.requires_grad:
                parameter.register_hook(lambda gradient: change(gradient, rank))

    return change_engine


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault: how it is planted, in which recipe, and what a verification says of it."""

    plant: Callable[[int], None]
    kind: str
    names: str = ""  # in the name of what differs
    recipe: str = "quickstart"
    settings: Mapping[str, str | float] = field(default_factory=dict)


def stage(number: int, **more: str | float) -> dict[str, str | float]:
    return {"parallel.zero_stage": number, **{k.replace("__", "."): v for k, v in more.items()}}


PRETRAINED = "a small pretrained model"  # the place of a folder in settings
LORA: dict[str, str | float] = {
    "lora": "{rank: 4}", "model.init": "pretrained", "model.name": PRETRAINED,
    "model.tokenizer": "null",
}  # fmt: skip


def shared(kind: str) -> dict[str, str | float]:
    return {f"parallel.{kind}": 2}


BF16 = {"precision": "bf16"}
ALBERT = {
    "model.architecture": "{model_type: albert, vocab_size: 2048, embedding_size: 32, "
    "hidden_size: 64, num_hidden_layers: 3, num_attention_heads: 4, intermediate_size: 128, "
    "max_position_embeddings: 512, type_vocab_size: 2}",
}
MISTRAL = {
    "model.architecture": "{model_type: mistral, vocab_size: 1024, hidden_size: 64, "
    "intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, head_dim: 16, sliding_window: 8, max_position_embeddings: 512}",
}
MOE = {
    "model.architecture": "{model_type: qwen3_moe, vocab_size: 2048, hidden_size: 64, "
    "intermediate_size: 128, moe_intermediate_size: 32, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, num_experts: 4, "
    "num_experts_per_tok: 2, max_position_embeddings: 512}",
}
